"""A fake engine that removes backgrounds, beside `fake_image_engine`'s models.

Alpha is 0 in the picture's left half and 255 in its right one; colours stay.
"""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from engine.contract.kinds import kind_for
from engine.contract.matte import (
    MattingEvent,
    MattingModelInfo,
    MattingOutput,
    MattingRequest,
    MattingStats,
)
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import MATTE
from engine.contract.pixels import Pixels
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason, Info
from engine.contract.status import ModelStatus, Phase
from engine.errors import EngineDead
from engine.worker.request_stream import RequestStream
from tests.helpers.server.fake_engine import Failure, model_info
from tests.helpers.server.fake_image_engine import FakeImageEngine


def matting_info(model: str = "cutter", **changes: object) -> MattingModelInfo:
    """Make the facts of a small ready model; `changes` replaces fields."""
    info = MattingModelInfo(
        model=model,
        path="/nonexistent",
        architecture="U2Net",
        dtype="float32",
        created=1_700_000_000,
        side=320,
    )
    return replace(info, **changes)  # type: ignore[arg-type]


class FakeMattingEngine(FakeImageEngine):
    """A fake engine with text and image models as before, and models that remove backgrounds.

    Attributes:
        matting_requests: the requests so far.
        open: streams not yet ended, by request id.
    """

    def __init__(self, *infos: Info) -> None:
        others = [info for info in infos if not isinstance(info, MattingModelInfo)]
        super().__init__(*others)  # type: ignore[arg-type]
        if not others:
            self.served.clear()
            self._statuses.clear()
        for info in infos:
            if isinstance(info, MattingModelInfo):
                self.serve(info)
        self.make_info = _loaded
        self.matting_requests: list[MattingRequest] = []
        self.open: dict[str, RequestStream[MattingEvent]] = {}

    def serve(self, info: Info) -> None:
        super().serve(info)
        if isinstance(info, MattingModelInfo):
            status = ModelStatus(model=info.model, phase=Phase.READY, kind=kind_for(MATTE).name)
            self._statuses[info.model] = status

    def submit(self, request: Any) -> Any:
        if not isinstance(request, MattingRequest):
            return super().submit(request)
        if self.submit_error is not None:
            raise self.submit_error
        self.matting_requests.append(request)
        table: Any = SimpleNamespace(close=self._closed)
        stream = RequestStream(request, table)
        self.open[request.request_id] = stream
        asyncio.get_running_loop().create_task(self._cut(stream, request, self.failure))
        return stream

    def kill_worker(self) -> None:
        super().kill_worker()
        for stream in self.open.values():
            stream.put(EngineDead("the engine process ended unexpectedly"))
        self.open.clear()

    def _closed(self, stream: RequestStream[Any]) -> None:
        if self.open.pop(stream.request_id, None) is not None:
            self.aborted.append(stream.request_id)

    async def _cut(
        self, stream: RequestStream[MattingEvent], request: MattingRequest, failure: Failure | None
    ) -> None:
        stream.put(
            MattingEvent(
                request_id=request.request_id, stage="solve", progress=0.25, queue_time_s=0.5
            )
        )
        await self._may_write.wait()
        if request.request_id not in self.open:
            return
        if failure is not None:
            [event] = rejection(request, failure.value().error(), [0])
        else:
            event = MattingEvent(
                request_id=request.request_id,
                image=cut(request),
                unknown_fraction=0.125,
                uncertain_fraction=0.75,
                width=request.image.width,
                height=request.image.height,
                warnings=("a warning",),
                finish_reason=FinishReason.STOP,
            )
        stream.put(event)
        self.open.pop(request.request_id, None)
        stats = MattingStats(num_steps=1, num_images=1, num_pixels=100, step_time_s=0.5)
        self.publish(request.model, stats)


def cut(request: MattingRequest) -> Pixels:
    """Make the result."""
    image = request.image
    shape = (image.height, image.width, image.channels)
    colours = np.frombuffer(image.data, np.uint8).reshape(shape)[..., :3]
    alpha = np.full(shape[:2], 255, np.uint8)
    alpha[:, : shape[1] // 2] = 0
    result = {
        MattingOutput.CUTOUT: np.dstack([colours, alpha]),
        MattingOutput.COMPOSITE: np.where(
            alpha[..., None] > 0, colours, np.array(request.colour, np.uint8)
        ),
    }.get(request.output, alpha[..., None])
    return Pixels(
        width=image.width,
        height=image.height,
        channels=result.shape[2],
        data=result.astype(np.uint8).tobytes(),
    )


def _loaded(spec: ModelSpec) -> Info:
    return matting_info(spec.name) if spec.ref == "u2netp" else model_info(spec.name)
