"""A server over a fake engine that draws, enlarges and removes backgrounds, for chains of these."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np

from engine.contract.enlarge import UpscaleEvent, UpscaleModelInfo, UpscaleRequest
from engine.contract.kinds import kind_for
from engine.contract.operations import ENLARGE
from engine.contract.pixels import Pixels
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason, Info
from engine.contract.status import ModelStatus, Phase
from engine.errors import EngineDead
from engine.worker.request_stream import RequestStream
from server.app import create_app
from tests.helpers.server.fake_image_engine import image_info
from tests.helpers.server.fake_matting_engine import FakeMattingEngine, matting_info
from tests.helpers.server.image_server import ImageServer
from tests.helpers.server.upscaling_server import upscaler_info

NUM_TILES = 2
DIGEST = "0123456789abcdef" * 4


class FakeChainEngine(FakeMattingEngine):
    """The fake engine with models that enlarge images, by repeating pixels, as well.

    Attributes:
        upscale_requests: the requests so far.
        held: models whose requests get no more events than their first, until `release`.
        failing: failures of requests to these models, in place of `failure`.
    """

    def __init__(self, *infos: Info) -> None:
        others = [info for info in infos if not isinstance(info, UpscaleModelInfo)]
        super().__init__(*others)
        for info in infos:
            if isinstance(info, UpscaleModelInfo):
                self.serve(info)
        self.upscale_requests: list[UpscaleRequest] = []
        self.held: set[str] = set()
        self.failing: dict[str, Any] = {}
        made = self.make_info
        self.make_info = lambda spec: (
            upscaler_info(spec.name) if "realesr" in spec.name else made(spec)
        )

    def serve(self, info: Info) -> None:
        super().serve(info)
        if isinstance(info, UpscaleModelInfo):
            status = ModelStatus(model=info.model, phase=Phase.READY, kind=kind_for(ENLARGE).name)
            self._statuses[info.model] = status

    def submit(self, request: Any) -> Any:
        if request.model in self.held:
            super().hold()
        if self.failing:
            self.failure = self.failing.get(request.model)
        if not isinstance(request, UpscaleRequest):
            return super().submit(request)
        self.upscale_requests.append(request)
        table: Any = SimpleNamespace(close=self._closed)
        stream: RequestStream[UpscaleEvent] = RequestStream(request, table)
        self.open[request.request_id] = stream  # type: ignore[assignment]
        asyncio.get_running_loop().create_task(self._enlarge(stream, request, self.failure))
        return stream

    def hold(self) -> None:
        """Hold requests to `cutter`, unless others are held."""
        self.held = self.held or {"cutter"}

    def release(self) -> None:
        self.held = set()
        super().release()

    async def _enlarge(self, stream: Any, request: UpscaleRequest, failure: Any) -> None:
        large = enlarged(request)
        half = large.height // 2 * large.width * large.channels
        for tile, rows in enumerate((large.data[:half], large.data[half:]), 1):
            is_last = tile == NUM_TILES
            if is_last:
                await self._may_write.wait()
                if request.request_id not in self.open:
                    return
                if failure is not None:
                    [event] = rejection(request, failure.value().error(), [0])
                    stream.put(event)
                    self.open.pop(request.request_id, None)
                    return
            event = UpscaleEvent(
                request_id=request.request_id, tile=tile, num_tiles=NUM_TILES, rows=rows
            )
            if tile <= request.num_previews:
                event = replace(event, preview=request.image, preview_index=tile - 1)
            stream.put(replace(event, finish_reason=FinishReason.STOP) if is_last else event)
        self.open.pop(request.request_id, None)


def enlarged(request: UpscaleRequest) -> Pixels:
    """Make the result: each pixel several times."""
    image = request.image
    levels = np.frombuffer(image.data, np.uint8)
    levels = levels.reshape(image.height, image.width, image.channels)
    rows = np.arange(request.height) * image.height // request.height
    columns = np.arange(request.width) * image.width // request.width
    data = np.ascontiguousarray(levels[rows][:, columns]).tobytes()
    return Pixels(width=request.width, height=request.height, channels=image.channels, data=data)


class ChainServer(ImageServer):
    """An app over the models `painter`, `enlarger` and `cutter`, or over those given."""

    engine: FakeChainEngine

    def __init__(self, *infos: Info, **settings: Any) -> None:
        super().__init__(**settings)
        known = {"digest": DIGEST}
        self.engine = FakeChainEngine(
            *infos or [image_info(**known), upscaler_info(**known), matting_info(**known)]
        )
        self.engine.config_of_server = self.settings.engine
        self.app = create_app(self.settings, self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def chain(self, *then: Any, **body: Any) -> httpx.Response:
        return await self.generate(then=list(then), **body)

    def die(self, model: str | None = None) -> None:
        """End the worker of later stages with its requests in it."""
        dead = EngineDead("the engine process ended unexpectedly")
        for stream in list(self.engine.open.values()):
            stream.put(dead)
        self.engine.open.clear()

    def assert_idle(self) -> None:
        """Nothing of any request is left."""
        state = self.app.state.tandem
        assert state.admission.num_in_flight() == 0
        assert state.admission.num_requests == 0
        assert state.pictures.budget.num_taken == state.pictures.between.num_taken == 0
        assert not self.engine.open and not self.engine.live_images
        assert not state.live_requests.of(None)
