"""`POST /v1/images/upscale`."""

from dataclasses import replace
from functools import partial

from fastapi import APIRouter, Request, Response

from engine.contract.draw import ImageModelInfo
from engine.contract.kinds import IMAGE, UPSCALE
from engine.contract.pixels import Pixels
from server.catalog import config_of
from server.http.form_route import FormRoute
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.reply import LaterReply
from server.http.shape import Shape
from server.http.sse import until_disconnect
from server.images.convert import ImageLimits
from server.images.kind import SERVED_IMAGES
from server.images.run import ImageRun
from server.protocol.answers import ErrorAnswer, error_answers, stream_answer
from server.protocol.common import RequestBody
from server.protocol.image_inputs import ImageReference
from server.protocol.upscaling import UpscaleAnswer, UpscaleImageRequest, form_body
from server.routes.deps import StateDep
from server.routes.ignored_fields import report_ignored_fields
from server.routes.keeping import keeper
from server.state import AppState
from server.upscaling.convert import (
    UpscaleLimits,
    read_image,
    scale_of,
    tiling,
    upscale_request,
)
from server.upscaling.drawing import (
    as_upscaling,
    drawing_model,
    drawing_order,
    read_small,
    upscale_events,
)
from server.upscaling.kind import SERVED_UPSCALING
from server.upscaling.reply import UpscaleReply
from server.upscaling.run import UpscaleRun

router = APIRouter(route_class=FormRoute, tags=["images"])

_EVENTS = "`image_upscale.progress`, `image_upscale.partial_image` or `image_upscale.completed`"
_NOTHING = Pixels(width=0, height=0, channels=3, data=b"")


@router.post(
    "/v1/images/upscale",
    summary="Enlarge an image",
    responses={
        200: stream_answer(UpscaleAnswer, _EVENTS),
        **error_answers(),
        499: {"model": ErrorAnswer, "description": "Cancelled by its id."},
    },
    openapi_extra=form_body(),
)
async def upscale_image(body: UpscaleImageRequest, request: Request, state: StateDep) -> Response:
    """Takes a form with the file `image`, or JSON with a data URL. The first request may wait until
    the model is fetched."""
    return await answer_upscaling(body, request, state)


async def answer_upscaling(
    body: UpscaleImageRequest,
    request: Request,
    state: AppState,
    *,
    sent: RequestBody | None = None,
    shape: Shape | None = None,
) -> Response:
    """Like `server.routes.images.answer_images`, for an image to enlarge."""
    headers = report_ignored_fields(request, sent or body)
    drawing = drawing_model(state.engine, body.model)
    if drawing is not None:
        return await _draw(body, request, state, drawing, headers, shape)
    info = await until_disconnect(request.receive, state.first_use.find(UPSCALE, body.model))
    annotate(request, model=info.model, stream=bool(body.stream), num_images=1)
    priority = acting_priority(body.priority, config_of(state.engine, info.model))
    settings = state.settings
    scale, cut = scale_of(body, info), tiling(body, info)
    lease = state.admission.admit(UPSCALE, info.model)
    meter = state.metrics.of(SERVED_UPSCALING).meter(info.model)
    async with UpscaleRun(state.engine, meter, lease) as run:
        annotate(request, image_id=run.id)
        state.live_requests.add(run, request, id=run.id, kind=UPSCALE, model=info.model)

        async def prepare() -> UpscaleReply:
            read = read_image(body, info, UpscaleLimits.of(settings), state.pictures, run, priority)
            image = await run.prepare(read)
            channels = image.channels
            order = upscale_request(body, image, info, cut, request_id=run.id, priority=priority)
            keep = keeper(body, request, state, num_pixels=order.width * order.height)
            run.submit(order)
            # The engine has the image; here it would wait in memory as long as the request does.
            order = replace(order, image=_NOTHING)
            body.image = ImageReference(image_url=None, file_id=None)
            return UpscaleReply(
                run,
                run.events,
                order,
                scale=scale,
                channels=channels,
                output_format=body.file_format,
                compression=body.file_quality,
                keep=keep,
                shape=shape,
            )

        return await LaterReply(run, prepare, shape).send(
            request,
            stream=body.stream,
            heartbeat_s=settings.heartbeat_interval_s,
            headers={**headers, "X-Image-Id": run.id},
        )


async def _draw(
    body: UpscaleImageRequest,
    request: Request,
    state: AppState,
    info: ImageModelInfo,
    headers: dict[str, str],
    shape: Shape | None,
) -> Response:
    """Enlarge with a model that draws: an image request, answered like one for enlargement."""
    annotate(request, model=info.model, stream=bool(body.stream), num_images=1)
    priority = acting_priority(body.priority, config_of(state.engine, info.model))
    settings = state.settings
    lease = state.admission.admit(IMAGE, info.model)
    meter = state.metrics.of(SERVED_IMAGES).meter(info.model)
    async with ImageRun(state.engine, meter, state.image_jobs, lease) as run:
        annotate(request, image_id=run.id)
        state.live_requests.add(run, request, id=run.id, kind=IMAGE, model=info.model)

        async def prepare() -> UpscaleReply:
            read = read_small(body, info, UpscaleLimits.of(settings), state.pictures, run, priority)
            image, scale = await run.prepare(read)
            limits = ImageLimits.of(settings)
            order = drawing_order(
                body, image, scale, info, limits, request_id=run.id, priority=priority
            )
            params = order.request.params
            if settings.log_prompts:
                annotate(request, prompt=order.request.prompt)
            keep = keeper(body, request, state, num_pixels=params.width * params.height)
            submitted = run.submit(order)
            channels = image.channels
            # As above.
            order = submitted.order
            body.image = ImageReference(image_url=None, file_id=None)
            return UpscaleReply(
                run,
                partial(upscale_events, submitted),
                as_upscaling(order),
                scale=scale,
                channels=channels,
                output_format=body.file_format,
                compression=body.file_quality,
                keep=keep,
                seed=params.seed,
                shape=shape,
            )

        return await LaterReply(run, prepare, shape).send(
            request,
            stream=body.stream,
            heartbeat_s=settings.heartbeat_interval_s,
            headers={**headers, "X-Image-Id": run.id},
        )
