"""From a body of `/v1/embeddings` to the engine's request, and from its events to the answer."""

import asyncio
import base64
import struct
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from engine.embedding_types import EmbeddingEvent, EmbeddingModelInfo, EmbeddingRequest
from engine.errors import ContextLengthExceeded, InvalidParameter
from server.protocol.embeddings import (
    Embedding,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EmbeddingUsage,
)
from server.text.convert import check_token_ids
from server.text.prompt_limit import PromptLimit, max_total_tokens
from server.text.texts import ModelText

MAX_CHARS_PER_TOKEN = 64
"""Of an input, on average. WordPiece makes one token of any unknown word, and none of white space,
so characters alone bound no number of tokens; text in any language has a tenth of this."""
_AT_ONCE = 64
"""Embeddings that are written before others get a turn: about a millisecond."""


def check_body(body: EmbeddingsRequest, info: EmbeddingModelInfo) -> None:
    """Refuse what can be seen to be too much, before anything is tokenised.

    Raises:
        InvalidParameter: names the field, and which of the inputs it is.
    """
    if body.dimensions is not None and body.dimensions > info.dimensions:
        raise InvalidParameter(
            f"dimensions is {body.dimensions}; embeddings of {info.model} have {info.dimensions} "
            f"numbers; ask for at most that",
            param="dimensions",
        )
    most = MAX_CHARS_PER_TOKEN * info.max_model_len
    for index, text in enumerate(body.input):
        if isinstance(text, str) and len(text) > most:
            raise InvalidParameter(
                f"{_name(body, index)} has {len(text)} characters; {info.model} takes "
                f"{info.max_model_len} tokens, and at most {most} characters; send it in parts",
                param="input",
            )


async def token_ids(
    body: EmbeddingsRequest, info: EmbeddingModelInfo, text: ModelText
) -> list[list[int]]:
    """Each input's.

    Raises:
        ContextLengthExceeded: an input has more tokens than the model takes; says which.
        InvalidParameter: all together have too many, or one has none, or one beyond the vocabulary.
        QueueFull: too many long texts are being tokenised.
    """
    limit = _limit(body, info)
    texts = [given for given in body.input if isinstance(given, str)]
    inputs: Sequence[list[int]] = [given for given in body.input if isinstance(given, list)]
    if texts:
        inputs = await text.encode_all(texts, add_special_tokens=True, limit=limit)
    for index, ids in enumerate(inputs):
        if not ids:
            raise InvalidParameter(f"{_name(body, index)} has no tokens", param="input")
        if len(ids) > info.max_model_len:
            raise _too_long(body, info, index, f"{len(ids)}")
        check_token_ids(ids, info, "input")
    num_tokens = sum(map(len, inputs))
    if num_tokens > limit.max_total_tokens:
        raise limit.total_exceeded(num_tokens)
    return list(inputs)


def embedding_request(
    body: EmbeddingsRequest,
    info: EmbeddingModelInfo,
    inputs: list[list[int]],
    *,
    priority: int = 0,
) -> EmbeddingRequest:
    """The engine's request for these token ids."""
    return EmbeddingRequest(
        request_id=f"embd-{uuid.uuid4().hex}",
        model=info.model,
        inputs=inputs,
        dimensions=body.dimensions,
        priority=priority,
        arrival_time_s=time.time(),
    )


async def answer(
    body: EmbeddingsRequest, request: EmbeddingRequest, events: Sequence[EmbeddingEvent]
) -> bytes:
    """The JSON of all embeddings; others get their turn while a long one is written."""
    write = _in_base64 if body.encoding_format == "base64" else _as_numbers
    data: list[Any] = []
    for index, event in enumerate(events):
        one = Embedding(index=index, embedding=write(event.embedding))
        data.append(msgspec.Raw(msgspec.json.encode(one)))
        if index % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
    num_tokens = sum(map(len, request.inputs))
    whole = EmbeddingsAnswer(
        data=data, model=request.model, usage=EmbeddingUsage(num_tokens, num_tokens)
    )
    return msgspec.json.encode(whole)


def _in_base64(numbers: bytes) -> str:
    return base64.b64encode(numbers).decode()


def _as_numbers(numbers: bytes) -> list[float]:
    return list(struct.unpack(f"<{len(numbers) // 4}f", numbers))


def _limit(body: EmbeddingsRequest, info: EmbeddingModelInfo) -> PromptLimit:
    def exceeded(num_tokens: int, index: int) -> ContextLengthExceeded:
        return _too_long(body, info, index, f"at least {num_tokens}")

    return PromptLimit(
        max_tokens=info.max_model_len,
        max_total_tokens=max_total_tokens(info.max_model_len),
        exceeded=exceeded,
        param="input",
    )


def _too_long(
    body: EmbeddingsRequest, info: EmbeddingModelInfo, index: int, num_tokens: str
) -> ContextLengthExceeded:
    however = f"{_name(body, index)} has {num_tokens} tokens. Please send it in shorter parts."
    return ContextLengthExceeded.beyond(info.max_model_len, however, param="input")


def _name(body: EmbeddingsRequest, index: int) -> str:
    """How the client may call one of its inputs."""
    return "input" if len(body.input) == 1 else f"input[{index}]"
