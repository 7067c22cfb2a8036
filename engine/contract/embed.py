"""Requests for embeddings and their answers."""

from dataclasses import dataclass

from engine.contract.request import Event, Info, Request, TurnStats


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
