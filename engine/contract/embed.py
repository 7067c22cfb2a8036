"""Requests for embeddings and their answers."""

from dataclasses import asdict, dataclass, fields

from engine.contract.request import Event, Info, Request, TurnStats
from engine.contract.token_ids import check_token_ids
from engine.errors import ContextLengthExceeded, InvalidParameter


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest(Request["EmbeddingEvent"]):
    """Texts that are embedded separately."""

    inputs: list[list[int]]
    """The token ids of each text: at least one, at most `EmbeddingModelInfo.max_model_len`."""
    dimensions: int | None = None
    """How many of the first numbers of each embedding to return; None is all."""

    @property
    def num_completions(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingEvent(Event):
    """The embedding of one input: its first and last event."""

    embedding: bytes = b""
    """Little-endian 32-bit numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingStats(TurnStats):
    """Statistics of an embedding engine: `num_running` counts the inputs of the newest step while
    others are left, `num_waiting` the inputs that no step has taken."""

    step_inputs: int = 0
    step_tokens: int = 0
    num_tokens: int = 0
    """The number of tokens of all embedded inputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFacts:
    """Facts about the embeddings that a text model makes, besides its own info."""

    max_model_len: int
    """The most tokens of an input."""
    dimensions: int
    pooling: str
    normalized: bool

    def info(self, of_model: Info) -> "EmbeddingModelInfo":
        """The model's info for embeddings."""
        shared = {f.name: getattr(of_model, f.name) for f in fields(Info)}
        return EmbeddingModelInfo(**shared | asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingModelInfo(Info):
    """Facts about a model that makes embeddings; its `path` holds the tokenizer."""

    max_model_len: int
    """The most tokens of an input."""
    vocab_size: int
    dimensions: int
    """The number of numbers in an embedding."""
    pooling: str
    """How the states of an input's tokens become one embedding."""
    normalized: bool
    """Whether embeddings have length 1."""

    @property
    def log_fields(self) -> dict[str, object]:
        return {"max_model_len": self.max_model_len, "dimensions": self.dimensions}


def check_dimensions(dimensions: int | None, most: int, model: str) -> None:
    """Refuse to return more numbers than the model's embeddings have.

    Raises:
        InvalidParameter: names the limit.
    """
    if dimensions is not None and not 1 <= dimensions <= most:
        raise InvalidParameter(
            f"dimensions is {dimensions}; embeddings of {model} have {most} numbers; ask for 1 to "
            f"{most}",
            param="dimensions",
        )


def check_input(
    token_ids: list[int], max_model_len: int, vocab_size: int, name: str, field: str
) -> None:
    """Refuse an input that the model cannot embed.

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
