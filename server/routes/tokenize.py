"""`POST /tokenize` and `POST /detokenize`, also under `/v1`, and `GET /tokenizer_info`."""

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response

from engine.contract.generate import ModelInfo
from engine.contract.token_ids import check_token_ids
from engine.errors import InvalidParameter
from engine.text.chat_format import ChatFormat
from server.catalog import config_of, find_default_model, find_model
from server.http.json_route import JsonRoute
from server.http.sse import until_disconnect
from server.protocol.answers import error_answers
from server.protocol.common import ModelRequest
from server.protocol.tokenize import (
    Detokenized,
    DetokenizeRequest,
    Piece,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from server.routes.deps import StateDep
from server.routes.ignored_fields import ignored_fields_header
from server.state import AppState
from server.text.chat_prompt import chat_prompt
from server.text.convert import check_num_tokens
from server.text.prompt_limit import counting_limit
from server.text.texts import ModelText
from server.text.tokenizer_info import tokenizer_info

router = APIRouter(route_class=JsonRoute, tags=["text"])


ModelName = Annotated[
    str | None,
    Query(max_length=256, description="Id of a served text model, if there are several."),
]


def _answers(model: type) -> dict[int | str, dict[str, Any]]:
    return {200: {"model": model}, **error_answers(400, 401, 404, 413, 415, 429, 500, 503)}


@router.post("/tokenize", summary="Text or messages to token ids", responses=_answers(Tokenized))
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeRequest, request: Request, state: StateDep) -> Response:
    """Returns the token ids of a prompt or a conversation, which may be up to four times as long as
    the model takes (or 65,536 tokens)."""
    info = find_default_model(state.engine, body.model)
    text = await state.texts.get(info)
    each = await _asked_ids(body, request, state, info, text)
    counts = [len(tokens) for tokens in each]
    shown: list[Any] = [_pieces(tokens, text) for tokens in each] if body.with_pieces else each
    entries = [text.vocabulary_entries(ids) for ids in each] if body.return_token_strs else None
    is_list = isinstance(body.text, list)
    answer = Tokenized(
        count=counts if is_list else counts[0],
        max_model_len=info.max_model_len,
        tokens=shown if is_list else shown[0],
        token_strs=entries if is_list or entries is None else entries[0],
    )
    return _respond(answer, body)


@router.post("/detokenize", summary="Token ids to text", responses=_answers(Detokenized))
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeRequest, request: Request, state: StateDep) -> Response:
    """Returns the tokens' text, including special tokens."""
    info = find_default_model(state.engine, body.model)
    check_num_tokens(body.tokens, info)
    check_token_ids(body.tokens, info.vocab_size, "tokens")
    text = await state.texts.get(info)
    decoding = text.decode(body.tokens, skip_special_tokens=False)
    prompt = await until_disconnect(request.receive, decoding)
    return _respond(Detokenized(prompt, prompt), body)


@router.get(
    "/tokenizer_info",
    summary="A model's tokenizer",
    responses=error_answers(400, 401, 404, 503),
    response_model=TokenizerInfo,
)
async def get_tokenizer_info(state: StateDep, model: ModelName = None) -> TokenizerInfo:
    """Returns the tokenizer's special tokens and the chat template."""
    info = find_model(state.engine, model)
    text = await state.texts.get(info)
    return tokenizer_info(text.tokenizer, info)


async def token_ids(body: TokenizeRequest, request: Request, state: AppState) -> list[int]:
    """Token ids of a prompt or a conversation, for other routes.

    Raises:
        EngineError: the text is refused, or too long.
    """
    info = find_model(state.engine, body.model)
    if isinstance(body.text, list):
        raise InvalidParameter("prompt must be a single text here; send one string", param="prompt")
    [tokens] = await _asked_ids(body, request, state, info, await state.texts.get(info))
    return tokens


async def _asked_ids(
    body: TokenizeRequest, request: Request, state: AppState, info: ModelInfo, text: ModelText
) -> list[list[int]]:
    chat_format = text.chat_format(config_of(state.engine, info.model))
    return await until_disconnect(request.receive, _token_ids(body, text, info, chat_format))


async def _token_ids(
    body: TokenizeRequest, text: ModelText, info: ModelInfo, chat_format: ChatFormat
) -> list[list[int]]:
    if body.messages is not None:
        rendered = chat_prompt(body, body.messages, chat_format)
        tokens = await text.encode_chat(
            rendered.messages,
            rendered.options,
            add_special_tokens=body.adds_special_tokens,
            limit=counting_limit(info, "messages"),
        )
        return [tokens]
    texts = body.text or ""
    return await text.encode_all(
        [texts] if isinstance(texts, str) else texts,
        add_special_tokens=body.adds_special_tokens,
        limit=counting_limit(info),
    )


def _pieces(tokens: list[int], text: ModelText) -> list[Piece]:
    pieces = []
    for token_id in tokens:
        octets = text.token_bytes(token_id)
        try:
            pieces.append(Piece(token_id, bytes(octets).decode()))
        except UnicodeDecodeError:
            pieces.append(Piece(token_id, octets))
    return pieces


def _respond(answer: Tokenized | Detokenized, body: ModelRequest) -> Response:
    """The response, encoded here because FastAPI would walk over every token of what a handler
    returns."""
    return Response(
        msgspec.json.encode(answer),
        media_type="application/json",
        headers=ignored_fields_header(body),
    )
