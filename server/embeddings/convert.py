"""Converts texts to the engine's request, and its events to vectors; the same for all routes."""

import base64
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from engine.contract.embed import EmbeddingEvent, EmbeddingModelInfo, EmbeddingRequest
from engine.contract.whole_texts import WholeTextsInfo, check_input, too_long
from engine.errors import ContextLengthExceeded, InvalidParameter
from server.embeddings.inputs import Inputs
from server.text.prompt_limit import PromptLimit, max_total_tokens
from server.text.texts import ModelText

MAX_CHARS_PER_TOKEN = 64
"""The most characters per token of an input, on average. WordPiece makes one token of any unknown
word, and none of white space, so characters alone do not bound the number of tokens; text in any
language has a tenth of this."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """A request and its events, in the order of its inputs."""

    request: EmbeddingRequest
    events: Sequence[EmbeddingEvent]
    pooling: str

    @property
    def num_tokens(self) -> int:
        """Number of tokens of all inputs."""
        return sum(map(len, self.request.inputs))


def check_inputs(inputs: Inputs, info: WholeTextsInfo, keep: int | None = None) -> None:
    """Refuse inputs that are visibly too large, before anything is tokenised.

    Args:
        keep: number of an input's tokens that are kept; None: an input that is too long is refused.

    Raises:
        InvalidParameter: names the field and the input.
    """
    if keep is not None:
        _check_kept(keep, info)
        return
    most = MAX_CHARS_PER_TOKEN * info.max_model_len
    for index, text in enumerate(inputs):
        if isinstance(text, str) and len(text) > most:
            raise InvalidParameter(
                f"{inputs.name(index)} has {len(text)} characters; {info.model} takes at most "
                f"{info.max_model_len} tokens and {most} characters; send it in parts",
                param=inputs.field(index),
            )


async def token_ids(
    inputs: Inputs, info: WholeTextsInfo, text: ModelText, keep: int | None = None
) -> list[list[int]]:
    """The token ids of each input.

    Args:
        keep: number of tokens to keep at the beginning of each input; tokens that the tokenizer
            puts after a text stay. -1 keeps as many as the model takes, None all.

    Raises:
        ContextLengthExceeded: an input has more tokens than the model takes; the message names it.
        InvalidParameter: all inputs together have too many tokens, or one has none or one outside
            the vocabulary.
        QueueFull: too many long texts are being tokenised.
    """
    keep = info.max_model_len if keep == -1 else keep
    limit = limit_of(inputs, info, keep)
    texts = [given for given in inputs if isinstance(given, str)]
    ids_of: Sequence[list[int]] = [given for given in inputs if isinstance(given, list)]
    if texts:
        check_room(keep, text.num_added_tokens, "the tokenizer itself")
        ids_of = await text.encode_all(texts, add_special_tokens=True, limit=limit)
    if keep is not None:
        ids_of = [ids[:keep] for ids in ids_of]
    for index, ids in enumerate(ids_of):
        name, field = inputs.name(index), inputs.field(index)
        check_input(ids, info.max_model_len, info.vocab_size, name, field)
    num_tokens = sum(map(len, ids_of))
    if num_tokens > limit.max_total_tokens:
        raise limit.total_exceeded(num_tokens)
    return list(ids_of)


def embedding_request(
    request_id: str,
    ids_of: list[list[int]],
    info: EmbeddingModelInfo,
    dimensions: int | None = None,
    priority: int = 0,
) -> EmbeddingRequest:
    """The engine's request for these token ids."""
    return EmbeddingRequest(
        request_id=request_id,
        model=info.model,
        inputs=ids_of,
        dimensions=dimensions,
        priority=priority,
        arrival_time_s=time.time(),
    )


def in_base64(numbers: bytes) -> str:
    """An event's embedding as the base64 of its numbers."""
    return base64.b64encode(numbers).decode()


def as_numbers(numbers: bytes) -> list[float]:
    """An event's embedding as numbers."""
    return list(struct.unpack(f"<{len(numbers) // 4}f", numbers))


def _check_kept(keep: int, info: WholeTextsInfo) -> None:
    if keep == 0 or keep > info.max_model_len:
        raise InvalidParameter(
            f"truncate_prompt_tokens is {keep}; it can be 1 to {info.max_model_len} for "
            f"{info.model}, or -1 for as many as the model takes",
            param="truncate_prompt_tokens",
        )


def check_room(keep: int | None, num_added: int, adder: str) -> None:
    """Refuse to keep so few tokens that only those remain that `adder` adds."""
    if keep is not None and keep <= num_added:
        raise InvalidParameter(
            f"truncate_prompt_tokens is {keep}, but {adder} adds {num_added} tokens; it must be at "
            f"least {num_added + 1}",
            param="truncate_prompt_tokens",
        )


def limit_of(inputs: Inputs, info: WholeTextsInfo, keep: int | None) -> PromptLimit:
    """The limit for inputs of which `keep` tokens are kept, or all."""

    def exceeded(num_tokens: int, index: int) -> ContextLengthExceeded:
        name, field = inputs.name(index), inputs.field(index)
        return too_long(f"at least {num_tokens}", info.max_model_len, name, field)

    return PromptLimit(
        max_tokens=info.max_model_len if keep is None else keep,
        max_total_tokens=max_total_tokens(info.max_model_len),
        exceeded=exceeded,
        param=inputs.last_field,
        cuts_end=keep is not None,
    )
