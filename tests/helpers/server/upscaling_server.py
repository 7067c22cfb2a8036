"""A server over an engine that enlarges images twice by repeating pixels, for the tests of its
route. The engine is the real one, stepped in the event loop."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from torch.nn import functional

from engine.contract.enlarge import UpscaleEvent, UpscaleModelInfo, UpscaleRequest
from engine.contract.kinds import kind_for
from engine.contract.operations import ENLARGE
from engine.contract.status import ModelStatus, Phase
from engine.errors import EngineDead
from engine.worker.request_stream import RequestStream
from server.app import create_app
from server.settings import Settings
from tests.helpers.server.fake_engine import FakeEngineClient
from tests.helpers.server.image_server import error_of, png
from tests.helpers.upscaling.upscaling_nets import PlainNet, upscaling_engine

UPSCALE_PATH = "/v1/images/upscale"
SCALE = 2


def upscaler_info(model: str = "enlarger", **changes: object) -> UpscaleModelInfo:
    info = UpscaleModelInfo(
        model=model,
        path="/nonexistent",
        architecture="Compact",
        dtype="float32",
        created=1_700_000_000,
        scale=SCALE,
        receptive_radius=4,
        default_tile=32,
        default_overlap=8,
        exact_by_default=True,
        max_tile=256,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


def repeated(images: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(images, scale_factor=float(SCALE), mode="nearest")


class FakeUpscaleEngine(FakeEngineClient):
    """The engine behind the server, stepped in the event loop.

    Attributes:
        upscale_requests: the requests so far.
        open: streams not yet ended, by request id.
        fault: raised by the network, if any.
    """

    def __init__(self, *infos: UpscaleModelInfo) -> None:
        super().__init__("unused")
        self.served.clear()
        self._statuses.clear()
        for info in infos:
            self.serve(info)
            self._statuses[info.model] = ModelStatus(
                model=info.model, phase=Phase.READY, kind=kind_for(ENLARGE).name
            )
        self.make_info = lambda spec: upscaler_info(spec.name)
        self.upscale_requests: list[UpscaleRequest] = []
        self.open: dict[str, RequestStream[UpscaleEvent]] = {}
        self.fault: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.real = upscaling_engine(PlainNet(self._enlarge, SCALE))

    def submit(self, request: Any) -> Any:
        if self.submit_error is not None:
            raise self.submit_error
        self.upscale_requests.append(request)
        table: Any = SimpleNamespace(close=self._closed)
        stream: RequestStream[UpscaleEvent] = RequestStream(request, table)
        self.open[request.request_id] = stream
        self.real.add(request)
        task = asyncio.get_running_loop().create_task(self._work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    def kill_worker(self) -> None:
        for stream in self.open.values():
            stream.put(EngineDead("the engine process ended unexpectedly"))
        self.open.clear()

    def _enlarge(self, images: torch.Tensor) -> torch.Tensor:
        if self.fault is not None:
            raise self.fault
        return repeated(images)

    def _closed(self, stream: RequestStream[Any]) -> None:
        if self.open.pop(stream.request_id, None) is not None:
            self.aborted.append(stream.request_id)
            self.real.abort(stream.request_id)

    async def _work(self) -> None:
        while True:
            await self._may_write.wait()
            await asyncio.sleep(0)
            if not self.real.has_work():
                return
            events, stats = self.real.step()
            for event in events:
                stream = self.open.get(event.request_id)
                if stream is not None:
                    stream.put(event)
                    if event.finish_reason is not None:
                        self.open.pop(event.request_id)
            for info in self.infos(ENLARGE):
                self.publish(info.model, stats)


class UpscalingServer:
    """An app over the model `enlarger`, or over those given."""

    def __init__(self, *infos: UpscaleModelInfo, is_empty: bool = False, **settings: Any) -> None:
        self.engine = FakeUpscaleEngine(*([] if is_empty else infos or [upscaler_info()]))
        self.settings = Settings(**settings)
        self.engine.config_of_server = self.settings.engine
        self.app = create_app(self.settings, self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def send(self, image: bytes | None = None, **fields: str) -> httpx.Response:
        """Send a request as a form."""
        files = {"image": ("a.png", png() if image is None else image, "image/png")}
        return await self.client.post(UPSCALE_PATH, files=files, data=fields)

    async def refused(self, image: bytes | None = None, **fields: str) -> dict[str, Any]:
        before = len(self.engine.upscale_requests)
        error = error_of(await self.send(image, **fields))
        assert len(self.engine.upscale_requests) == before
        return error

    def value(self, name: str, **labels: str) -> float | None:
        registry = self.app.state.tandem.metrics.registry
        return registry.get_sample_value(
            f"tandem_upscale_{name}", {"model_name": "enlarger", **labels}
        )
