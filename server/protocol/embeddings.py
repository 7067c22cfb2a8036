"""Bodies of `POST /v1/embeddings` and `POST /pooling`, and the card of a model for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.protocol.common import MAX_TOKEN_COUNT, ModelRequest, Priority
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
"""The same for vLLM's `/pooling`; what is done anyway passes."""


class EmbeddingModelRequest(ModelRequest):
    """What all routes of embedding models share."""

    priority: Priority = None


class CutRequest(EmbeddingModelRequest):
    """Whose texts may be cut."""

    truncate_prompt_tokens: int | None = Field(
        None,
        ge=-1,
        le=MAX_TOKEN_COUNT,
        description="Keep only the first so many tokens of each text, among them those that the "
        "tokenizer adds; -1 keeps as many as the model takes. Default: a longer one is refused.",
        json_schema_extra={"not": {"const": 0}},
    )


class EmbeddingFields(CutRequest):
    """Texts, and how their embeddings are written."""

    model_config = ConfigDict(json_schema_extra={"example": {"input": ["The sky is blue."]}})

    input: Prompts = Field(
        description="Text, token ids, or a list of either; each gets an embedding of its own. "
        "Token ids are taken as they are: none are added."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None,
        description="base64 is of the numbers as 32 bits each, little-endian. Default float.",
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        le=MAX_TOKEN_COUNT,
        description="Only the first so many numbers, made of length 1 again where the model's "
        "embeddings are. Default: all.",
    )


class EmbeddingsRequest(EmbeddingFields):
    """OpenAI's embeddings request."""

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_EMBEDDING_FIELDS


class PoolingRequest(EmbeddingFields):
    """vLLM's request for what a model pools of each text: here its embedding."""

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_POOLING_FIELDS


@dataclass(slots=True, kw_only=True)
class Embedding:
    """Of the input of that number."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or their bytes in base64."""


@dataclass(slots=True)
class EmbeddingUsage:
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


@dataclass(slots=True, kw_only=True)
class EmbeddingsAnswer:
    """One embedding per input, in their order."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


@dataclass(slots=True, kw_only=True)
class Pooled:
    """Of the input of that number."""

    index: int
    object: Literal["pooling"] = "pooling"
    data: list[float] | str
    """Numbers, or their bytes in base64."""


@dataclass(slots=True, kw_only=True)
class PoolingAnswer:
    """What was pooled of each input, in their order."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Pooled]
    usage: EmbeddingUsage


@dataclass(slots=True, kw_only=True)
class EmbeddingModelCard:
    """A served embedding model; what comes after `parent` says what it takes and gives."""

    id: str
    object: Literal["model"] = "model"
    created: int
    max_model_len: int
    """Tokens of the longest input."""
    root: str
    owned_by: str = "tandem"
    parent: str | None = None
    architecture: str
    dimensions: int
    pooling: str
    normalized: bool
    max_inputs: int
    """Of a request."""
