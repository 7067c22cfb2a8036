"""Requests for embeddings and their answers."""

from dataclasses import asdict, dataclass, fields

from engine.contract.request import Event, Info
from engine.contract.whole_texts import WholeTextsInfo, WholeTextsRequest, WholeTextsStats
from engine.errors import InvalidParameter


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest(WholeTextsRequest["EmbeddingEvent"]):
    """Texts that are embedded separately."""

    dimensions: int | None = None
    """How many of the first numbers of each embedding to return; None is all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingEvent(Event):
    """The embedding of one input: its first and last event."""

    embedding: bytes = b""
    """Little-endian 32-bit numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingStats(WholeTextsStats):
    """Statistics of an engine that embeds."""


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
class EmbeddingModelInfo(WholeTextsInfo):
    """Facts about a model that makes embeddings."""

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
