"""`/v1/images`: draw, edit and vary images; look up and cancel a request by its id; stored
results."""

import math
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Request, Response

from engine.contract.draw import ImageModelInfo, ImageTask
from engine.contract.kinds import IMAGE
from server.catalog import config_of, find_image_model
from server.http.errors import INVALID_REQUEST, error_response
from server.http.form_route import FormRoute
from server.http.json_route import JsonRoute
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.reply import LaterReply
from server.http.shape import Shape
from server.images.convert import ImageLimits, image_order
from server.images.inputs import ImageInputs, read_inputs
from server.images.kind import SERVED_IMAGES
from server.images.reply import ImageReply
from server.images.run import FileOptions, ImageRun
from server.images.task import choose_task
from server.protocol.answers import ErrorAnswer, error_answers, stream_answer
from server.protocol.common import RequestBody
from server.protocol.image_answers import ImageJobAnswer, ImagesAnswer
from server.protocol.images import (
    ImageEditRequest,
    ImageFields,
    ImageGenerationRequest,
    ImageInputFields,
    ImageVariationRequest,
    form_body,
)
from server.routes.deps import StateDep
from server.routes.ignored_fields import report_ignored_fields
from server.routes.keeping import keeper
from server.routes.matting import create_cutter
from server.state import AppState

router = APIRouter(route_class=JsonRoute, tags=["images"])
form_router = APIRouter(route_class=FormRoute, tags=["images"])

_POST_ONLY = ("generations", "edits", "variations", "upscale", "matte")
"""Names under /v1/images that are not ids: a client that asks for one uses the wrong method."""
_WRONG_METHOD = {"model": ErrorAnswer, "description": "The id is the name of a route for POST."}

ImageId = Annotated[str, Path(description="The answer's `X-Image-Id`.")]
FileName = Annotated[str, Path(description="As in the `url` of an answer.")]


def _responses(prefix: str) -> dict[int | str, dict[str, Any]]:
    chunk = f"`{prefix}.partial_image` or `{prefix}.completed`"
    cancelled = {"model": ErrorAnswer, "description": "Cancelled by its id."}
    return {200: stream_answer(ImagesAnswer, chunk), **error_answers(), 499: cancelled}


@router.post(
    "/v1/images/generations",
    summary="Draw images",
    responses=_responses("image_generation"),
)
async def create_image(body: ImageGenerationRequest, request: Request, state: StateDep) -> Response:
    """Answers whole, or with server-sent events if `stream` is set."""
    return await answer_images(body, request, state, "image_generation")


@form_router.post(
    "/v1/images/edits",
    summary="Change an image",
    responses=_responses("image_edit"),
    openapi_extra=form_body(ImageEditRequest),
)
async def edit_image(body: ImageEditRequest, request: Request, state: StateDep) -> Response:
    """Takes a form with the files `image` and `mask`, or JSON with data URLs."""
    return await answer_images(body, request, state, "image_edit")


@form_router.post(
    "/v1/images/variations",
    summary="Draw images like the given one",
    responses=_responses("image_edit"),
    openapi_extra=form_body(ImageVariationRequest),
)
async def vary_image(body: ImageVariationRequest, request: Request, state: StateDep) -> Response:
    """Takes a form with the file `image`, or JSON with a data URL."""
    return await answer_images(body, request, state, "image_edit")


@router.get(
    "/v1/images/{image_id}",
    summary="Progress of a request",
    responses={**error_answers(401, 404), 405: _WRONG_METHOD},
    response_model=ImageJobAnswer,
)
async def get_image_job(image_id: ImageId, state: StateDep) -> ImageJobAnswer | Response:
    """Returns the progress of a request, while it runs and for an hour after its end."""
    return state.image_jobs.answer(image_id) or _no_such_image(image_id)


@router.delete(
    "/v1/images/{image_id}",
    summary="Cancel a request",
    responses={**error_answers(401, 404), 405: _WRONG_METHOD},
    response_model=ImageJobAnswer,
)
async def cancel_image_job(image_id: ImageId, state: StateDep) -> ImageJobAnswer | Response:
    """Ends the request before its next step. A request that is already over does not change."""
    job = state.image_jobs.get(image_id)
    if job is None:
        return _no_such_image(image_id)
    await job.cancel()
    return job.answer(None)


@router.get(
    "/v1/images/files/{name}",
    summary="A stored image",
    response_class=Response,
    responses={200: {"content": {"image/*": {}}}, **error_answers(404)},
)
async def get_image_file(name: FileName, state: StateDep) -> Response:
    """Returns a stored image. This needs no API key: the name is the secret."""
    stored = state.image_store.get(name)
    if stored is None:
        return error_response(
            404,
            "there is no such image, or it has expired; ask for the image again",
            INVALID_REQUEST,
            code="image_not_found",
        )
    headers = {
        "Cache-Control": f"private, max-age={state.image_store.seconds_left(name)}, immutable",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(stored.data, media_type=stored.media_type, headers=headers)


async def answer_images(
    body: ImageFields,
    request: Request,
    state: AppState,
    event_prefix: str,
    *,
    sent: RequestBody | None = None,
    shape: Shape | None = None,
) -> Response:
    """Admit, decode, convert, submit and reply. The run is closed when the client leaves.

    Args:
        sent: what the client sent, if `body` was made from it.
        shape: form of the reply. Default: OpenAI's.

    Raises:
        EngineError: the request is refused, or fails before the first byte.
    """
    headers = report_ignored_fields(request, sent or body)
    info = find_image_model(state.engine, body.model)
    annotate(request, model=info.model, stream=bool(body.stream))
    priority = acting_priority(body.priority, config_of(state.engine, info.model))
    task = choose_task(body, info)
    num_images = _num_results(body)
    lease = state.admission.admit(IMAGE, info.model, num_images)
    meter = state.metrics.of(SERVED_IMAGES).meter(info.model)
    async with ImageRun(state.engine, meter, state.image_jobs, lease) as run:
        annotate(request, image_id=run.id, num_images=num_images)
        state.live_requests.add(run, request, id=run.id, kind=IMAGE, model=info.model)

        async def prepare() -> ImageReply:
            return await _submit(
                run, body, task, info, priority, request, state, event_prefix, shape
            )

        return await LaterReply(run, prepare, shape).send(
            request,
            stream=body.stream,
            heartbeat_s=state.settings.heartbeat_interval_s,
            headers={**headers, "X-Image-Id": run.id},
        )


async def _submit(
    run: ImageRun,
    body: ImageFields,
    task: ImageTask,
    info: ImageModelInfo,
    priority: int,
    request: Request,
    state: AppState,
    event_prefix: str,
    shape: Shape | None,
) -> ImageReply:
    """Decode and convert a request, and send it to the engine."""
    settings = state.settings
    limits = ImageLimits.of(settings)
    inputs = ImageInputs()
    if isinstance(body, ImageInputFields):
        read = read_inputs(
            body,
            state.pictures,
            run,
            max_pixels=limits.max_input_pixels,
            model=info.model,
            priority=priority,
        )
        inputs = await run.prepare(read)
        # The files would wait in memory as long as the request does.
        body.images.clear()
    order = image_order(body, task, inputs, info, limits, request_id=run.id, priority=priority)
    if settings.log_prompts:
        annotate(request, prompt=order.request.prompt)
    params = order.request.params
    num_pixels = math.prod(params.result_size)
    keep = keeper(body, request, state, num_pixels=num_pixels, num_images=params.n)
    cutter = None
    if body.background == "transparent":
        cutter = await create_cutter(state, params.n, priority)
        run.hold(cutter.places)
    submitted = run.submit(order, cutter)
    options = FileOptions(
        output_format=body.file_format,
        compression=body.file_quality,
        with_metadata=settings.image_metadata,
        background="opaque" if cutter is None else "transparent",
    )
    return ImageReply(
        run,
        submitted,
        options,
        event_prefix=event_prefix,
        block=info.size_multiple,
        inputs=[(image.width, image.height) for image in inputs.images],
        keep=keep,
        shape=shape,
    )


def _num_results(body: ImageFields) -> int:
    num_inputs = len(body.images) if isinstance(body, ImageInputFields) else 1
    return (body.n or 1) * num_inputs * body.num_settings


def _no_such_image(image_id: str) -> Response:
    if image_id in _POST_ONLY:
        raise HTTPException(405, headers={"Allow": "POST"})
    return error_response(
        404,
        "no request with this id is known here; requests are forgotten an hour after their end",
        INVALID_REQUEST,
        param="image_id",
        code="image_not_found",
    )
