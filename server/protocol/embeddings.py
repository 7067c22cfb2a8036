"""Bodies of `POST /v1/embeddings` and `POST /pooling`, and the card of an embedding model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.protocol.common import MAX_TOKEN_COUNT, ModelRequest, Priority
from server.protocol.models import TextModelCard
from server.protocol.prompts import Prompts

UNSUPPORTED_EMBEDDING_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "messages": (),
    "normalize": (True,),
}
"""Known fields of other servers that are refused, with the values that ask for nothing."""

UNSUPPORTED_POOLING_FIELDS: Mapping[str, tuple[Any, ...]] = {
    **UNSUPPORTED_EMBEDDING_FIELDS,
    "task": ("embed",),
    "use_activation": (True,),
    "activation": (True,),
    "softmax": (),
    "add_special_tokens": (True,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
}
"""The refused fields of vLLM's `/pooling`; values that describe what is done anyway pass."""


class EmbeddingModelRequest(ModelRequest):
    """The common fields of all routes of embedding models."""

    id_prefix: ClassVar[str] = "embd"
    """The beginning of the ids of requests and their answers."""

    priority: Priority = None


class CutRequest(EmbeddingModelRequest):
    """A request whose texts may be cut."""

    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MAX_TOKEN_COUNT,
        description="Keep only this many tokens at the beginning of each text, including those "
        "that the tokenizer adds; -1 keeps as many as the model takes. Default: a "
        "text that is too long is refused.",
        json_schema_extra={"not": {"const": 0}},
    )


class EmbeddingFields(CutRequest):
    """Texts, and the form of their embeddings."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": ["The sky is blue."]}})

    input: Prompts = Field(
        description="Text, token ids, or a list of either; each gets its own embedding. Token "
        "ids are used as they are: none are added."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None,
        description="base64 encodes the numbers as 32 bits each, little-endian. Default float.",
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKEN_COUNT,
        description="Return only this many numbers of each embedding, scaled to length 1 again "
        "if the model's embeddings have length 1. Default: all.",
    )


class EmbeddingsRequest(EmbeddingFields):
    """OpenAI's embeddings request."""

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_EMBEDDING_FIELDS


class PoolingRequest(EmbeddingFields):
    """vLLM's request for the pooled result of each text, which here is its embedding."""

    id_prefix: ClassVar[str] = "pool"
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_POOLING_FIELDS


@dataclass(slots=True, kw_only=True)
class Embedding:
    """The embedding of the input with this index."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or their bytes in base64."""


@dataclass(slots=True)
class EmbeddingUsage:
    """Number of tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


@dataclass(slots=True, kw_only=True)
class EmbeddingsAnswer:
    """One embedding per input, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    pooling: str
    """How the states of an input's tokens became one embedding: mean, cls, max or last."""
    usage: EmbeddingUsage


@dataclass(slots=True, kw_only=True)
class Pooled:
    """The pooled result of the input with this index."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str
    """Numbers, or their bytes in base64."""


@dataclass(slots=True, kw_only=True)
class PoolingAnswer:
    """The pooled result of each input, in the order of the inputs."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: EmbeddingUsage


@dataclass(slots=True, kw_only=True)
class EmbeddingModelCard(TextModelCard):
    """A served embedding model. The fields after `parent` say what it takes and returns."""

    architecture: str
    dimensions: int
    pooling: str
    normalized: bool
    max_inputs: int
    """The most inputs of a request."""
