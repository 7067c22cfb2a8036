"""`POST /v1/images/matte`."""

from fastapi import APIRouter, Request, Response

from server.dependencies import StateDep
from server.http.form_route import FormRoute
from server.operations.matte import answer_matte
from server.protocol.answers import whole_answer
from server.protocol.matting import MatteAnswer, MatteRequest, form_body

router = APIRouter(route_class=FormRoute, tags=["images"])


@router.post(
    "/v1/images/matte",
    summary="Remove the background",
    responses=whole_answer(MatteAnswer),
    openapi_extra=form_body(),
)
async def matte_image(body: MatteRequest, request: Request, state: StateDep) -> Response:
    """Takes a form with the file `image`, or JSON with a data URL. The first request may wait until
    the model is fetched."""
    return await answer_matte(body, request, state)
