"""`POST /v1/images/matte`, and the removal of backgrounds from drawn images."""

import asyncio
from functools import partial

from fastapi import APIRouter, Request, Response

from engine.contract.kinds import MATTING
from server.catalog import config_of
from server.http.form_route import FormRoute
from server.http.log_fields import annotate
from server.http.priority import acting_priority
from server.http.shape import encode
from server.http.sse import until_disconnect
from server.matting.convert import drop_files, encoded, matte_answer, matting_request, new_matte_id
from server.matting.cutter import Cutter
from server.matting.kind import SERVED_MATTING
from server.matting.run import MatteRun
from server.protocol.answers import error_answers
from server.protocol.matting import MatteAnswer, MatteRequest, form_body
from server.routes.deps import StateDep
from server.routes.ignored_fields import report_ignored_fields
from server.routes.keeping import keeper
from server.state import AppState

router = APIRouter(route_class=FormRoute, tags=["images"])


@router.post(
    "/v1/images/matte",
    summary="Remove the background",
    responses={200: {"model": MatteAnswer}, **error_answers()},
    openapi_extra=form_body(),
)
async def matte_image(body: MatteRequest, request: Request, state: StateDep) -> Response:
    """Takes a form with the file `image`, or JSON with a data URL. The first request may wait until
    the model is fetched."""
    headers = report_ignored_fields(request, body)
    return await until_disconnect(request.receive, _answer(body, request, state, headers))


async def create_cutter(state: AppState, num_images: int, priority: int) -> Cutter:
    """Prepare to remove the background of this many images, once they are drawn.

    Args:
        priority: the priority with which they are drawn.

    Raises:
        EngineError: there is no matting model, or no place.
    """
    info = await state.first_use.find(MATTING, None)
    places = [state.admission.admit(MATTING, info.model) for _ in range(num_images)]
    return Cutter(
        state.engine,
        state.metrics.of(SERVED_MATTING),
        info.model,
        priority,
        places,
    )


async def _answer(
    body: MatteRequest, request: Request, state: AppState, headers: dict[str, str]
) -> Response:
    """Admit, decode, submit, encode."""
    info = await state.first_use.find(MATTING, body.model)
    annotate(request, model=info.model, num_images=1)
    priority = acting_priority(body.priority, config_of(state.engine, info.model))
    lease = state.admission.admit(MATTING, info.model)
    meter = state.metrics.of(SERVED_MATTING).meter(info.model)
    id = new_matte_id()
    async with MatteRun(state.engine, meter, lease) as run:
        state.live_requests.add(run, request, id=id, kind=MATTING, model=info.model)
        read = matting_request(
            body,
            state.pictures,
            run,
            request_id=id,
            model=info.model,
            max_pixels=state.settings.max_image_input_pixels,
            priority=priority,
        )
        order = await run.prepare(read)
        drop_files(body)
        num_pixels = order.image.width * order.image.height
        keep = keeper(body, request, state, num_pixels=num_pixels)
        event = await run.answer(order)
        del order, read  # decoded pictures need not wait for the file
        image = event.image
        assert image is not None
        file = await asyncio.to_thread(encoded, body, image)
        url = None if keep is None else keep(file)
        make = partial(matte_answer, request_id=id, model=info.model, file=file, url=url)
        answer = await asyncio.to_thread(lambda: encode(make(body, event, image)))
    headers = {**headers, "X-Image-Id": id}
    return Response(answer, media_type="application/json", headers=headers)
