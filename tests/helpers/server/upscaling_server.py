"""A server over an engine that enlarges images twice by repeating pixels, for the tests of its
route. The engine is the real one, stepped in the event loop."""

import asyncio
from typing import Any

import httpx
import torch
from torch.nn import functional

from engine.contract.enlarge import UpscaleModelInfo
from engine.contract.operations import ENLARGE
from engine.contract.request import Request
from engine.worker.request_stream import RequestStream
from tests.helpers.server.fake_engine import FakeEngine, Live
from tests.helpers.server.fake_failure import Failure
from tests.helpers.server.fake_images import SCALE, upscaler_info
from tests.helpers.server.fake_server import error_of
from tests.helpers.server.image_server import ImageServer, png
from tests.helpers.upscaling.upscaling_nets import PlainNet, upscaling_engine

UPSCALE_PATH = "/v1/images/upscale"


class RealUpscaleEngine(FakeEngine):
    """The engine behind the server, stepped in the event loop.

    Attributes:
        fault: raised by the network, if any.
    """

    def __init__(self, *infos: UpscaleModelInfo) -> None:
        super().__init__(*infos)
        self.fault: Exception | None = None
        self.real = upscaling_engine(PlainNet(self._enlarge, SCALE))

    def submit(self, request: Request[Any]) -> RequestStream[Any]:
        stream = super().submit(request)
        self.real.add(request)  # type: ignore[arg-type]
        return stream

    def _enlarge(self, images: torch.Tensor) -> torch.Tensor:
        if self.fault is not None:
            raise self.fault
        return functional.interpolate(images, scale_factor=float(SCALE), mode="nearest")

    def _abandon(self, live: Live) -> None:
        """Abort it in the engine, which its task goes on to step."""
        self.real.abort(live.request.request_id)

    async def _answer(self, live: Live, failure: Failure | None) -> None:
        while True:
            await self.may_write.wait()
            await asyncio.sleep(0)
            if not self.real.has_work():
                return
            events, stats = self.real.step()
            for event in events:
                if found := self.live.get(event.request_id):
                    found.stream.put(event)
                    if event.finish_reason is not None:
                        del self.live[event.request_id]
            for info in self.infos(ENLARGE):
                self.publish(info.model, stats)


class UpscalingServer(ImageServer):
    """An app over the model `enlarger`, or over those given."""

    default = (upscaler_info(),)
    metrics = ("tandem_upscale", "enlarger")

    def __init__(self, *infos: UpscaleModelInfo, **settings: Any) -> None:
        super(ImageServer, self).__init__(RealUpscaleEngine(*infos or self.default), **settings)

    async def send(self, image: bytes | None = None, **fields: str) -> httpx.Response:
        """Send a request as a form."""
        files = {"image": ("a.png", png() if image is None else image, "image/png")}
        return await self.client.post(UPSCALE_PATH, files=files, data=fields)

    async def refused(self, image: bytes | None = None, **fields: str) -> dict[str, Any]:
        before = len(self.engine.requests)
        error = error_of(await self.send(image, **fields))
        assert len(self.engine.requests) == before
        return error
