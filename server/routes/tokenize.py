"""`POST /tokenize` and `POST /detokenize`, also under `/v1`, and `GET /tokenizer_info`."""

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response

from engine.contract.generate import ModelInfo
from engine.contract.operations import GENERATE
from engine.contract.token_ids import check_token_ids
from server.catalog import find_model
from server.dependencies import ModelName, StateDep
from server.http.json_route import JsonRoute
from server.http.sse import until_disconnect
from server.operations.ignored_fields import ignored_fields_header
from server.operations.tokenize import all_token_ids
from server.protocol.answers import error_answers, whole_answer
from server.protocol.common import ModelRequest
from server.protocol.tokenize import (
    Detokenized,
    DetokenizeRequest,
    Piece,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from server.state import ClientRequest
from server.text.convert import check_num_tokens
from server.text.texts import ModelText
from server.text.tokenizer_info import tokenizer_info

router = APIRouter(route_class=JsonRoute, tags=["text"])


@router.post(
    "/tokenize", summary="Text or messages to token ids", responses=whole_answer(Tokenized)
)
@router.post("/v1/tokenize", include_in_schema=False)
async def tokenize(body: TokenizeRequest, request: Request, state: StateDep) -> Response:
    """Returns the token ids of a prompt or a conversation, which may be up to four times as long as
    the model takes (or 65,536 tokens)."""
    info = await _model(body, ClientRequest(request, state))
    text = await state.texts.get(info)
    each = await until_disconnect(request.receive, all_token_ids(body, state, info, text))
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


@router.post("/detokenize", summary="Token ids to text", responses=whole_answer(Detokenized))
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(body: DetokenizeRequest, request: Request, state: StateDep) -> Response:
    """Returns the tokens' text, including special tokens."""
    info = await _model(body, ClientRequest(request, state))
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


async def _model(body: ModelRequest, client: ClientRequest) -> ModelInfo:
    """The model of that id. Without one the first text model, as any will do."""
    infos = client.state.engine.infos(GENERATE)
    return await client.find(GENERATE, body.model or (infos[0].model if infos else None))
