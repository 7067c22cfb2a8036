"""`POST /tokenize` and `POST /detokenize`, also under `/v1`."""

from typing import Any

import msgspec
from fastapi import APIRouter, Response

from server.catalog import find_model
from server.convert import (
    check_token_ids,
    ignored_fields_header,
    template_messages,
    template_options,
)
from server.deps import StateDep
from server.json_route import JsonRoute
from server.protocol.answers import error_answers
from server.protocol.common import ModelRequest
from server.protocol.tokenize import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

router = APIRouter(route_class=JsonRoute, tags=["text"])


def _answers(model: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, **error_answers(400, 401, 404, 413, 415, 500, 503)}


@router.post("/tokenize", summary="Text or messages to token ids", responses=_answers(Tokenized))
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeRequest, state: StateDep) -> Response:
    """What a prompt or a conversation comes to."""
    info = find_model(state.engine, body.model)
    text = await state.texts.get(info)
    if body.messages is not None:
        tokens = await text.encode_chat(
            template_messages(body.messages),
            template_options(body),
            add_special_tokens=bool(body.add_special_tokens),
        )
    else:
        special = body.add_special_tokens is not False
        [tokens] = await text.encode_all([body.prompt or ""], add_special_tokens=special)
    answer = Tokenized(
        count=len(tokens),
        max_model_len=info.max_model_len,
        tokens=tokens,
        token_strs=text.vocabulary_entries(tokens) if body.return_token_strs else None,
    )
    return _respond(answer, body)


@router.post("/detokenize", summary="Token ids to text", responses=_answers(Detokenized))
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeRequest, state: StateDep) -> Response:
    """Special tokens are kept."""
    info = find_model(state.engine, body.model)
    check_token_ids(body.tokens, info, "tokens")
    text = await state.texts.get(info)
    prompt = await text.decode(body.tokens, skip_special_tokens=False)
    return _respond(Detokenized(prompt=prompt), body)


def _respond(answer: Tokenized | Detokenized, body: ModelRequest) -> Response:
    """Encoded here: FastAPI walks over every token of what a handler returns."""
    return Response(
        msgspec.json.encode(answer),
        media_type="application/json",
        headers=ignored_fields_header(body),
    )
