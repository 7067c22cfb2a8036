"""Anthropic's routes, `/v1/messages`, and `/v1/models` for its clients."""

from functools import partial

from fastapi import APIRouter, Request, Response

from engine.contract.operations import GENERATE
from server.dependencies import ClientDep, StateDep
from server.dialects.anthropic import models
from server.dialects.anthropic.cache_control import cache_marks
from server.dialects.anthropic.convert import chat_body, count_body
from server.dialects.anthropic.protocol import CountTokensRequest, MessagesRequest
from server.dialects.anthropic.shape import FRAMING, MessageShape, error_shape
from server.dialects.dialect import Dialect, responses
from server.http.json_route import JsonRoute
from server.http.shape import encode
from server.operations.chat import answer_chat
from server.operations.ignored_fields import report_ignored_fields
from server.operations.tokenize import token_ids

router = APIRouter(route_class=JsonRoute, tags=["Anthropic"])
router.include_router(models.router)

_FAILURE = {"type": "error", "error": {"type": "invalid_request_error", "message": "..."}}
_answers = partial(responses, failure=_FAILURE)


@router.post(
    "/v1/messages",
    summary="Write the next message",
    responses=_answers(
        {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "..."}]},
        stream_type=FRAMING.media_type,
    ),
)
async def create_message(body: MessagesRequest, client: ClientDep) -> Response:
    """Whole, or as server-sent events with `stream`."""
    marks = cache_marks(body)
    sent = client.with_sent(body, MessageShape(marks))
    return await answer_chat(chat_body(body), sent, marks)


@router.post(
    "/v1/messages/count_tokens",
    summary="Count a conversation's tokens",
    responses=_answers({"input_tokens": 8}),
)
async def count_message_tokens(
    body: CountTokensRequest, request: Request, state: StateDep
) -> Response:
    """Counts the tokens of a conversation as the model's chat template writes it."""
    headers = report_ignored_fields(request, body)
    tokens = await token_ids(count_body(body), request, state)
    counted = encode({"input_tokens": len(tokens)})
    return Response(counted, media_type="application/json", headers=headers)


ANTHROPIC = Dialect(
    router=router,
    failures=("/v1/messages", error_shape),
    bodies={MessagesRequest: GENERATE, CountTokensRequest: GENERATE},
)
