"""`POST /v1/chat/completions`, and the token count of a conversation."""

from fastapi import APIRouter, Response

from server.dependencies import ClientDep
from server.http.json_route import JsonRoute
from server.operations.chat import answer_chat, answer_with_count, answer_with_prompt
from server.protocol.answers import (
    InputTokens,
    RenderedPrompt,
    StoredList,
    error_answers,
    stream_answer,
    whole_answer,
)
from server.protocol.chat import ChatCompletion, ChatCompletionRequest

router = APIRouter(route_class=JsonRoute, tags=["text"])


@router.post(
    "/v1/chat/completions",
    summary="Answer a conversation",
    responses=stream_answer(ChatCompletion, "`chat.completion.chunk`"),
)
@router.post("/chat/completions", include_in_schema=False)
async def create_chat_completion(body: ChatCompletionRequest, client: ClientDep) -> Response:
    """Answers whole, or with server-sent events if `stream` is set."""
    return await answer_chat(body, client)


@router.get("/v1/chat/completions", summary="List stored answers", responses=error_answers(401))
async def list_chat_completions() -> StoredList:
    """The list is always empty: `store` has no effect here. `/v1/responses` stores responses."""
    return StoredList()


@router.post(
    "/v1/chat/completions/input_tokens",
    summary="Count a conversation's tokens",
    responses=whole_answer(InputTokens),
)
@router.post("/chat/completions/input_tokens", include_in_schema=False)
async def count_chat_tokens(body: ChatCompletionRequest, client: ClientDep) -> Response:
    """Counts the tokens of the conversation as the model's chat template writes it."""
    return await answer_with_count(body, client)


@router.post(
    "/v1/chat/completions/render",
    summary="A conversation's tokens",
    responses=whole_answer(RenderedPrompt),
)
async def render_chat_completion(body: ChatCompletionRequest, client: ClientDep) -> Response:
    """Answers with the tokens that the model would read, and generates nothing, as vLLM does."""
    return await answer_with_prompt(body, client)
