"""How long a prompt may be, asked before it is tokenised and while it is."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import EngineError, InvalidParameter
from engine.types import ModelInfo

_LEAST_TOKENIZED = 1 << 16
_LEAST_TOTAL = 1 << 20


@dataclass(frozen=True, slots=True)
class PromptLimit:
    """For the texts of one request.

    Attributes:
        max_tokens: of each text; one that has more is refused.
        keep_last: leave out what is before so many last tokens, in place of refusing.
        cuts_end: leave out what is behind `max_tokens`, but for what ends every text, in place of
            refusing.
        max_total_tokens: of all texts together.
        exceeded: the refusal of a text, from its number of tokens as far as that is known, `at
            least 9000`, and which of the texts it is.
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
            f"{self.max_total_tokens}; send fewer at once",
            param=self.param,
        )


def counting_limit(info: ModelInfo, param: str = "prompt") -> PromptLimit:
    """For texts that are only counted: more than fits, so that a client sees how much too long."""
    most = max_counted_tokens(info)

    def exceeded(num_tokens: int, index: int) -> InvalidParameter:
        return InvalidParameter(
            f"the text has at least {num_tokens} tokens; {most} can be counted at once, and "
            f"{info.model} takes {info.max_model_len}; send it in parts",
            param=param,
        )

    return PromptLimit(most, most, exceeded, param)


def max_counted_tokens(info: ModelInfo) -> int:
    """Tokens that `/tokenize` gives and `/detokenize` takes."""
    return max(4 * info.max_model_len, _LEAST_TOKENIZED)


def max_total_tokens(max_model_len: int) -> int:
    """Tokens of all texts of a request to a model that takes so many of each."""
    return max(16 * max_model_len, _LEAST_TOTAL)
