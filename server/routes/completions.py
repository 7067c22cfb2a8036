"""`POST /v1/completions`."""

from fastapi import APIRouter, Response

from server.dependencies import ClientDep
from server.http.json_route import JsonRoute
from server.operations.completion import answer_completion
from server.protocol.answers import stream_answer
from server.protocol.completions import Completion, CompletionRequest

router = APIRouter(route_class=JsonRoute, tags=["text"])


@router.post(
    "/v1/completions",
    summary="Continue text",
    responses=stream_answer(Completion, "`text_completion`"),
)
async def create_completion(body: CompletionRequest, client: ClientDep) -> Response:
    """Answers whole, or with server-sent events if `stream` is set."""
    return await answer_completion(body, client)
