"""`POST /v1/images/upscale`."""

from fastapi import APIRouter, Response

from server.dependencies import ClientDep
from server.http.form_route import FormRoute
from server.operations.enlarge import answer_upscaling
from server.protocol.answers import stream_answer
from server.protocol.upscaling import UpscaleAnswer, UpscaleImageRequest

router = APIRouter(route_class=FormRoute, tags=["images"])

_EVENTS = "`image_upscale.progress`, `image_upscale.partial_image` or `image_upscale.completed`"


@router.post(
    "/v1/images/upscale",
    summary="Enlarge an image",
    responses=stream_answer(UpscaleAnswer, _EVENTS, is_image=True),
    openapi_extra=UpscaleImageRequest.form_body(),
)
async def upscale_image(body: UpscaleImageRequest, client: ClientDep) -> Response:
    """Takes a form with the file `image`, or JSON with a data URL. The first request may wait until
    the model is fetched."""
    return await answer_upscaling(body, client)
