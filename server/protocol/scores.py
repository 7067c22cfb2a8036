"""Bodies of `POST /v1/rerank` (as Cohere, Jina and vLLM have it) and `POST /v1/score` (vLLM's)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.common import MAX_TOKEN_COUNT, WireModel
from server.protocol.embeddings import CutRequest, EmbeddingUsage
from server.protocol.prompts import MAX_PROMPTS

UNSUPPORTED_SCORE_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "max_tokens_per_doc": (),
    "max_chunks_per_doc": (),
    "rank_fields": (["text"],),
    "activation": (),
    "softmax": (),
    "use_activation": (),
}
"""Known fields of other servers that are refused, with the values that ask for nothing."""

Text = Annotated[str, Field(min_length=1)]


class DocumentFields(WireModel):
    """A document as an object; what is beside its text does not count."""

    text: Text


def _text_of(value: Any) -> Any:
    """A document's text, also where it came as `{"text": ...}`."""
    return value["text"] if isinstance(value, dict) and "text" in value else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Document = Annotated[Text, BeforeValidator(_text_of, json_schema_input_type=Text | DocumentFields)]
_Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
Texts = Annotated[_Texts, BeforeValidator(_as_list, json_schema_input_type=Text | _Texts)]


class RerankRequest(CutRequest):
    """Documents to put in the order of how well they answer a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": "What is the capital of France?",
                "documents": ["Berlin is a city.", "Paris is the capital of France."],
            }
        }
    )
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_SCORE_FIELDS

    query: Text = Field(description="What the documents are compared with.")
    documents: list[_Document] = Field(
        min_length=1, max_length=MAX_PROMPTS, description='Texts, or objects `{"text": ...}`.'
    )
    top_n: int | None = Field(
        None, ge=0, le=MAX_TOKEN_COUNT, description="Only so many, the best. Default, and 0: all."
    )
    return_documents: bool | None = Field(
        None, description="Repeat each document's text in the answer. Default true."
    )


class ScoreRequest(CutRequest):
    """Pairs of texts: one with each of the others, or each with the one of the same number."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"text_1": "The sky is blue.", "text_2": ["It is azure."]}}
    )
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_SCORE_FIELDS

    text_1: Texts = Field(description="A text, or as many as text_2 has.")
    text_2: Texts = Field(description="A text or several.")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        num_first, num_second = len(self.text_1), len(self.text_2)
        if num_first not in (1, num_second):
            raise InvalidParameter(
                f"text_1 has {num_first} texts and text_2 has {num_second}; text_1 must have one, "
                "or as many as text_2",
                param="text_1",
            )
        return self


@dataclass(slots=True)
class Document:
    """What was ranked."""

    text: str


@dataclass(slots=True, kw_only=True)
class Ranked:
    """A document's number in the request, and how well it fits."""

    index: int
    document: Document | None
    relevance_score: float


@dataclass(slots=True, kw_only=True)
class RerankAnswer:
    """The best document first."""

    id: str
    model: str
    usage: EmbeddingUsage
    results: list[Ranked]


@dataclass(slots=True, kw_only=True)
class Score:
    """Of the pair of that number."""

    index: int
    object: Literal["score"] = "score"
    score: float


@dataclass(slots=True, kw_only=True)
class ScoreAnswer:
    """One score per pair."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Score]
    usage: EmbeddingUsage
