"""`POST /v1/images/matte`."""

from fastapi import APIRouter, Response

from server.dependencies import ClientDep
from server.http.form_route import FormRoute
from server.operations.matte import answer_matte
from server.protocol.answers import whole_answer
from server.protocol.matting import MatteAnswer, MatteRequest

router = APIRouter(route_class=FormRoute, tags=["images"])


@router.post(
    "/v1/images/matte",
    summary="Remove the background",
    responses=whole_answer(MatteAnswer),
    openapi_extra=MatteRequest.form_body(),
)
async def matte_image(body: MatteRequest, client: ClientDep) -> Response:
    """Takes a form with the file `image`, or JSON with a data URL. The first request may wait until
    the model is fetched."""
    return await answer_matte(body, client)
