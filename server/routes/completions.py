"""`POST /v1/completions`, and the tokens of its prompts."""

from fastapi import APIRouter, Response

from server.dependencies import ClientDep
from server.http.json_route import JsonRoute
from server.operations.completion import answer_completion, answer_with_prompts
from server.protocol.answers import RenderedPrompt, error_answers, stream_answer
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


@router.post(
    "/v1/completions/render",
    summary="The prompts' tokens",
    response_model=list[RenderedPrompt],
    responses=error_answers(),
)
async def render_completion(body: CompletionRequest, client: ClientDep) -> Response:
    """Answers for each prompt with the tokens that the model would read, and generates nothing, as
    vLLM does."""
    return await answer_with_prompts(body, client)
