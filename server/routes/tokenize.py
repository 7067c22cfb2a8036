"""`POST /tokenize` and `POST /detokenize`, also under `/v1`."""

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
from server.protocol.common import error_answers
from server.protocol.tokenize import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

router = APIRouter(route_class=JsonRoute, tags=["text"])

_ERRORS = error_answers(400, 401, 404, 413, 415, 500, 503)


@router.post("/tokenize", summary="Text or messages to token ids", responses=_ERRORS)
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeRequest, response: Response, state: StateDep) -> Tokenized:
    """What a prompt or a conversation comes to."""
    response.headers.update(ignored_fields_header(body))
    info = find_model(state.engine, body.model)
    text = await state.texts.get(info)
    if body.messages is not None:
        tokens = await text.encode_chat(
            template_messages(body.messages),
            add_special_tokens=bool(body.add_special_tokens),
            **template_options(body),
        )
    else:
        special = body.add_special_tokens is not False
        [tokens] = await text.encode_all([body.prompt or ""], add_special_tokens=special)
    return Tokenized(
        count=len(tokens),
        max_model_len=info.max_model_len,
        tokens=tokens,
        token_strs=text.vocabulary_entries(tokens) if body.return_token_strs else None,
    )


@router.post("/detokenize", summary="Token ids to text", responses=_ERRORS)
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeRequest, response: Response, state: StateDep) -> Detokenized:
    """Special tokens are kept."""
    response.headers.update(ignored_fields_header(body))
    info = find_model(state.engine, body.model)
    check_token_ids(body.tokens, info, "tokens")
    text = await state.texts.get(info)
    return Detokenized(prompt=await text.decode(body.tokens, skip_special_tokens=False))
