"""What is asked of a model that makes embeddings, and what comes back; `engine.types` for texts."""

from dataclasses import dataclass

from engine.types import Event, Info, Request, Stats


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest(Request["EmbeddingEvent"]):
    """Texts to embed, each by itself."""

    inputs: list[list[int]]
    """Token ids of each, none empty, none longer than `EmbeddingModelInfo.max_model_len`."""
    dimensions: int | None = None
    """Only the first so many numbers of each embedding; None: all."""

    @property
    def num_completions(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingEvent(Event):
    """The embedding of one input: its first and last event."""

    embedding: bytes = b""
    """Numbers of 32 bits, little-endian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingStats(Stats):
    """Those of an embedding engine: `num_running` counts the inputs of the newest step while there
    is more to do, `num_waiting` inputs without a step."""

    step_inputs: int = 0
    step_tokens: int = 0
    step_time_s: float = 0.0
    """Of the newest step."""
    num_tokens: int = 0
    """Of all inputs embedded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingModelInfo(Info):
    """Of a model that makes embeddings, whose `path` holds its tokenizer."""

    max_model_len: int
    """Tokens of the longest input."""
    vocab_size: int
    dimensions: int
    """Numbers of an embedding."""
    pooling: str
    """How the states of an input's tokens become one."""
    normalized: bool
    """Embeddings have length 1."""

    @property
    def log_fields(self) -> dict[str, object]:
        return {"max_model_len": self.max_model_len, "dimensions": self.dimensions}
