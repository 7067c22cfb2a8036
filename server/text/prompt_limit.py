"""Limits of a prompt's length, checked before and while it is tokenised."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.contract.generate import ModelInfo
from engine.errors import EngineError, InvalidParameter

_LEAST_TOKENIZED = 1 << 16
_LEAST_TOTAL = 1 << 20


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """The limits for the texts of one request.

    Attributes:
        max_tokens: limit of each text; a longer one is refused.
        keep_last: keep only this many last tokens of a long text instead of refusing it.
        cuts_end: cut a long text after `max_tokens` instead of refusing it, but keep the tokens
            that end every text.
        max_total_tokens: limit of all texts together.
        exceeded: makes the refusal of a text, given a lower bound of its tokens and its index among
            the texts.
        param: the field that holds the texts.
    """

    max_tokens: int
    max_total_tokens: int
    exceeded: Callable[[int, int], EngineError]
    param: str
    keep_last: int | None = None
    cuts_end: bool = False

    def total_exceeded(self, num_tokens: int) -> InvalidParameter:
        return InvalidParameter(
            f"the prompts have at least {num_tokens} tokens together; the limit is "
            f"{self.max_total_tokens}; send fewer or shorter prompts",
            param=self.param,
        )


def counting_limit(info: ModelInfo, param: str = "prompt") -> PromptLimit:
    """The limit for texts that are only counted. It is above what fits the model, so that a client
    sees by how much a text is too long."""
    most = max_counted_tokens(info)

    def exceeded(num_tokens: int, index: int) -> InvalidParameter:
        return InvalidParameter(
            f"the text has at least {num_tokens} tokens; at most {most} can be counted at once "
            f"({info.model} takes {info.max_model_len}); send the text in parts",
            param=param,
        )

    return PromptLimit(most, most, exceeded, param)


def max_counted_tokens(info: ModelInfo) -> int:
    """The most tokens that `/tokenize` returns and `/detokenize` takes."""
    return max(4 * info.max_model_len, _LEAST_TOKENIZED)


def max_total_tokens(max_model_len: int) -> int:
    """The most tokens in all texts of a request to a model with this context length."""
    return max(16 * max_model_len, _LEAST_TOTAL)
