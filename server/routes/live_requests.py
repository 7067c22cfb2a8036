"""`/v1/requests`: lists and cancels requests in flight."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from server.dependencies import StateDep
from server.http.errors import INVALID_REQUEST, error_response
from server.http.live_requests import Label, LiveRun
from server.http.owner import owner_of
from server.protocol.answers import error_answers
from server.protocol.live_requests import LiveRequest, LiveRequestList

router = APIRouter(tags=["requests"])

RequestId = Annotated[
    str, Path(max_length=256, description="The answer's id, or the request's `X-Request-Id`.")
]


@router.get("/v1/requests", summary="Requests in flight", responses=error_answers(401))
async def list_requests(
    request: Request,
    state: StateDep,
    id: Annotated[
        str | None,
        Query(max_length=256, description="Only requests with this id or `X-Request-Id`."),
    ] = None,
) -> LiveRequestList:
    """Lists the requests of the API key that asks, or all requests if there are no keys."""
    found = state.live_requests.of(owner_of(request), id)
    return LiveRequestList(data=[_shown(label, run) for label, run in found])


@router.delete(
    "/v1/requests/{request_id:path}",
    summary="Cancel a request",
    response_model=LiveRequestList,
    responses=error_answers(401, 404),
)
async def cancel_request(
    request_id: RequestId, request: Request, state: StateDep
) -> LiveRequestList | Response:
    """Ends the request in the engine at once, and its answer with an error. An `X-Request-Id` that
    several requests share cancels them all."""
    found = state.live_requests.of(owner_of(request), request_id)
    if not found:
        return error_response(
            404,
            "no request with this id is in flight here; GET /v1/requests lists those that are",
            INVALID_REQUEST,
            param="request_id",
            code="request_not_found",
        )
    cancelled = []
    for label, run in found:
        cancelled.append(_shown(label, run))
        cancelled[-1].status = "cancelled"
        await run.cancel()
    return LiveRequestList(data=cancelled)


def _shown(label: Label, run: LiveRun) -> LiveRequest:
    progress = run.progress()
    return LiveRequest(
        id=label.id,
        request_id=label.request_id,
        kind=label.kind,
        model=label.model,
        created=label.created,
        status="running" if progress.is_begun else "queued",
        n=progress.num_results,
        num_finished=progress.num_finished,
        prompt_tokens=progress.num_prompt_tokens,
        completion_tokens=progress.num_generated_tokens,
        progress=progress.fraction,
        operation=progress.operation,
        stage=progress.stage,
    )
