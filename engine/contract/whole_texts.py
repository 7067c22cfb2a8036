"""What requests for embeddings and for scores share: texts that are each computed whole."""

from dataclasses import dataclass

from engine.contract.request import EventT, Info, Request, TurnStats
from engine.contract.token_ids import check_token_ids
from engine.errors import ContextLengthExceeded, InvalidParameter


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTextsRequest(Request[EventT]):
    """Texts that are computed separately; each is answered by one event."""

    inputs: list[list[int]]
    """The token ids of each text: at least one, at most `WholeTextsInfo.max_model_len`."""

    @property
    def num_input_tokens(self) -> int:
        return sum(map(len, self.inputs))

    @property
    def num_completions(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTextsStats(TurnStats):
    """The statistics of an engine that computes such texts: `num_running` counts the inputs of the
    newest step while others are left, `num_waiting` the inputs that no step has taken."""

    step_inputs: int = 0
    step_tokens: int = 0
    num_tokens: int = 0
    """The number of tokens of all computed inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTextsInfo(Info):
    """Facts about a model that computes such texts; its `path` holds the tokenizer."""

    max_model_len: int
    """The most tokens of an input."""
    vocab_size: int


def check_input(
    token_ids: list[int], max_model_len: int, vocab_size: int, name: str, field: str
) -> None:
    """Refuse an input that the model cannot take.

    Args:
        name: what the error calls the input.
        field: the field of a request that holds it.

    Raises:
        InvalidParameter, ContextLengthExceeded: the error names the limit.
    """
    if not token_ids:
        raise InvalidParameter(f"{name} has no tokens; send some text", param=field)
    if len(token_ids) > max_model_len:
        raise too_long(f"{len(token_ids)}", max_model_len, name, field)
    check_token_ids(token_ids, vocab_size, field)


def too_long(num_tokens: str, max_model_len: int, name: str, field: str) -> ContextLengthExceeded:
    """The error for an input with too many tokens."""
    however = f"{name} has {num_tokens} tokens. Please send it in shorter parts."
    return ContextLengthExceeded.beyond(max_model_len, however, param=field)
