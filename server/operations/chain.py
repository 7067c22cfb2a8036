"""Chains: further operations on each picture of a request after it is drawn.

All models are found, and have places for all pictures, before anything is drawn. A request
therefore never waits for a place while it holds others.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from engine.contract.draw import ImageModelInfo
from engine.contract.enlarge import UpscaleModelInfo
from engine.contract.matte import MattingEvent, MattingModelInfo
from engine.contract.operations import DRAW, ENLARGE, MATTE
from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter
from server.http.admission import Lease
from server.http.engine_run import new_id
from server.http.item_run import ItemRun
from server.images.chain import Chain, Stage
from server.images.jobs import ImageJobs, StageEvent
from server.images.limits import Size
from server.images.run import ImageRun
from server.images.served import SERVED_IMAGES
from server.matting.convert import matting_request
from server.matting.served import SERVED_MATTING
from server.operations.exchange import run_with
from server.protocol.chain import EnlargeStage, MatteStage, within_stage
from server.protocol.image_answers import BackgroundName
from server.protocol.images import ImageFields
from server.state import AppState
from server.upscaling.convert import TiledEnlarging
from server.upscaling.drawing import DrawnEnlarging, Enlarging, drawing_model
from server.upscaling.served import SERVED_UPSCALING

_UNCERTAIN = 0.5
"""Answers warn from this `uncertain_fraction` on."""
_PERCENT = 100


async def begin_chain(
    body: ImageFields, run: ImageRun, drawing: ImageModelInfo, state: AppState, priority: int
) -> Chain | None:
    """The chain that a body asks for, with its places; None if it ends with the drawing.

    Args:
        run: the request's run, which holds the places.
        drawing: the model that draws, at which the run holds places.

    Raises:
        EngineError: a model cannot be loaded or has no place, or a stage's fields do not fit it.
    """
    stages: list[Stage] = []
    admitted = {drawing.model}
    for number, fields in enumerate(_asked(body), 1):
        with within_stage(number - 1 if body.then else None):
            stages.append(await _stage(fields, number, bool(body.then), state, priority))
    if not stages:
        return None
    for stage in stages:
        model = stage.info.model
        if model not in admitted:
            admitted.add(model)
            with within_stage(stage.place):
                operation = MATTE if isinstance(stage, _Matte) else ENLARGE
                num_images = run.progress().num_results
                run.hold([state.admission.admit(operation, model, num_images)])
    chain = Chain(stages, state.pictures.between)
    run.hold([chain])
    return chain


def background_after(body: ImageFields) -> BackgroundName:
    """The background of the finished pictures."""
    results = [stage.result for stage in _asked(body) if isinstance(stage, MatteStage)]
    is_cut_out = results[-1:] == ["cutout"] and body.file_format != "jpeg"
    return "transparent" if is_cut_out else "opaque"


def _asked(body: ImageFields) -> Sequence[EnlargeStage | MatteStage]:
    if body.background == "transparent":
        return [MatteStage.model_validate({"operation": "matte"})]
    return body.then or []


async def _stage(
    fields: EnlargeStage | MatteStage, number: int, is_told: bool, state: AppState, priority: int
) -> Stage:
    find, settings = state.first_use.find, state.settings
    facts: dict[str, Any] = {"number": number, "is_told": is_told, "priority": priority}
    if isinstance(fields, MatteStage):
        info = await find(MATTE, fields.model)
        return _Matte(fields=fields, info=info, state=state, **facts)
    await state.first_use.wake(DRAW, fields.model)
    drawing = drawing_model(state.engine, fields.model)
    enlarging: Enlarging = (
        TiledEnlarging(fields, await find(ENLARGE, fields.model), settings)
        if drawing is None
        else DrawnEnlarging(fields, drawing, settings)
    )
    return _Enlarge(fields=fields, info=enlarging.info, enlarging=enlarging, state=state, **facts)


@dataclass(kw_only=True)
class _Enlarge(Stage):
    enlarging: Enlarging
    state: AppState

    def size(self, width: int, height: int, num_images: int) -> Size:
        return self.enlarging.size(width, height, num_images)

    def run(self) -> ItemRun[Any]:
        state, info, lease = self.state, self.info, Lease.within()
        if isinstance(info, UpscaleModelInfo):
            return run_with(state, SERVED_UPSCALING, info, "upscale", lease)
        meter = state.metrics.of(SERVED_IMAGES).meter(info.model)
        return ImageRun(new_id("img"), state.engine, meter, lease, ImageJobs())

    async def follow(
        self, run: Any, picture: Pixels, index: int
    ) -> AsyncGenerator[StageEvent, None]:
        self.enlarging.begin(run, picture, self.priority, index)
        width, height = self.enlarging.size(picture.width, picture.height)
        rows: list[bytes] = []
        warnings: tuple[str, ...] = ()
        async with aclosing(self.enlarging.events(run)) as events:
            async for event in events:
                rows.append(event.rows)
                warnings = event.warnings or warnings
                yield self.event(
                    index,
                    step=event.tile,
                    num_steps=event.num_tiles,
                    preview=event.preview,
                    preview_index=event.preview_index,
                )
        data, channels = b"".join(rows), picture.channels
        image = Pixels(width=width, height=height, channels=channels, data=data)
        yield self.event(index, image=image, warnings=warnings)

    def chosen(self, index: int) -> dict[str, Any]:
        return self.enlarging.settings(index)


@dataclass(kw_only=True)
class _Matte(Stage):
    fields: MatteStage
    info: MattingModelInfo
    state: AppState

    def size(self, width: int, height: int, num_images: int) -> Size:
        most = self.state.settings.max_image_input_pixels
        if self.is_told and width * height > most:
            raise InvalidParameter(
                f"the image has {width}x{height} pixels at that stage; backgrounds are removed "
                f"from images of at most {most} pixels; ask for a smaller image, or remove the "
                "background before it is enlarged"
            )
        return width, height

    def run(self) -> ItemRun[MattingEvent]:
        return run_with(self.state, SERVED_MATTING, self.info, "matte", Lease.within())

    async def follow(
        self, run: Any, picture: Pixels, index: int
    ) -> AsyncGenerator[StageEvent, None]:
        facts = {"request_id": run.id, "model": self.info.model, "priority": self.priority}
        run.submit(matting_request(self.fields, picture, **facts))
        async with aclosing(run.events()) as events:
            async for event in events:
                is_done = event.image is not None
                yield self.event(
                    index,
                    step=_PERCENT if is_done else round(_PERCENT * event.progress),
                    num_steps=_PERCENT,
                    image=event.image,
                    warnings=_warnings(event) if is_done else (),
                )


def _warnings(event: MattingEvent) -> tuple[str, ...]:
    if event.uncertain_fraction < _UNCERTAIN:
        return event.warnings
    return (
        *event.warnings,
        f"{event.uncertain_fraction:.0%} of the subject's border came out neither opaque nor "
        "transparent; check it",
    )
