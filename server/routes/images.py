"""`/v1/images`: draw, edit and vary images; look up and cancel a request by its id; stored
results."""

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Path, Response

from server.dependencies import ClientDep, StateDep
from server.http.errors import INVALID_REQUEST, error_response
from server.http.form_route import FormRoute
from server.http.json_route import JsonRoute
from server.operations.draw import answer_images
from server.protocol.answers import ErrorAnswer, error_answers, stream_answer
from server.protocol.image_answers import ImageJobAnswer, ImagesAnswer
from server.protocol.images import (
    ImageEditRequest,
    ImageGenerationRequest,
    ImageVariationRequest,
    form_body,
)

router = APIRouter(route_class=JsonRoute, tags=["images"])
form_router = APIRouter(route_class=FormRoute, tags=["images"])

_POST_ONLY = ("generations", "edits", "variations", "upscale", "matte")
"""Names under /v1/images that are not ids: a client that asks for one uses the wrong method."""
_WRONG_METHOD = {"model": ErrorAnswer, "description": "The id is the name of a route for POST."}

ImageId = Annotated[str, Path(description="The answer's `X-Image-Id`.")]
FileName = Annotated[str, Path(description="As in the `url` of an answer.")]


def _responses(prefix: str) -> dict[int | str, dict[str, Any]]:
    chunk = f"`{prefix}.partial_image`, `{prefix}.progress` (with `then`) or `{prefix}.completed`"
    return stream_answer(ImagesAnswer, chunk, is_image=True)


@router.post(
    "/v1/images/generations",
    summary="Draw images",
    responses=_responses("image_generation"),
)
async def create_image(body: ImageGenerationRequest, client: ClientDep) -> Response:
    """Answers whole, or with server-sent events if `stream` is set."""
    return await answer_images(body, client, "image_generation")


@form_router.post(
    "/v1/images/edits",
    summary="Change an image",
    responses=_responses("image_edit"),
    openapi_extra=form_body(ImageEditRequest),
)
async def edit_image(body: ImageEditRequest, client: ClientDep) -> Response:
    """Takes a form with the files `image` and `mask`, or JSON with data URLs."""
    return await answer_images(body, client, "image_edit")


@form_router.post(
    "/v1/images/variations",
    summary="Draw images like the given one",
    responses=_responses("image_edit"),
    openapi_extra=form_body(ImageVariationRequest),
)
async def vary_image(body: ImageVariationRequest, client: ClientDep) -> Response:
    """Takes a form with the file `image`, or JSON with a data URL."""
    return await answer_images(body, client, "image_edit")


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
