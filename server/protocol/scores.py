"""Bodies of `POST /v1/rerank` (Cohere's, Jina's and vLLM's form, and TEI's) and of `POST /v1/score`
(vLLM's form)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from engine.contract.score import Activation
from engine.errors import InvalidParameter
from server.protocol.common import MAX_TOKEN_COUNT, WireModel
from server.protocol.embeddings import CutRequest, EmbeddingUsage
from server.protocol.models import TextModelCard
from server.protocol.prompts import MAX_PROMPTS

UNSUPPORTED_SCORE_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "max_tokens_per_doc": (0,),
    "max_tokens_per_query": (0,),
    "max_chunks_per_doc": (),
    "rank_fields": (["text"],),
    "instruction": ("",),
    "chat_template_kwargs": ({},),
    "truncation_side": ("right",),
    "truncation_direction": ("right", "Right"),
    "activation": (),
    "softmax": (),
    "use_activation": (),
}
"""Known fields of other servers that are refused, with the values that ask for nothing."""

MAX_INSTRUCTION_CHARS = 4096
Text = Annotated[str, Field(min_length=1)]


class DocumentFields(WireModel):
    """A document as an object; everything except its text is ignored."""

    text: Text


def _text_of(value: Any) -> Any:
    """A document's text, also if it came as `{"text": ...}`."""
    return value["text"] if isinstance(value, dict) and "text" in value else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_Document = Annotated[Text, BeforeValidator(_text_of, json_schema_input_type=Text | DocumentFields)]
_Documents = Annotated[list[_Document], Field(min_length=1, max_length=MAX_PROMPTS)]
_Texts = Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
Texts = Annotated[_Texts, BeforeValidator(_as_list, json_schema_input_type=Text | _Texts)]


def either_of(*forms: tuple[str, ...]) -> dict[str, Any]:
    """The rule of `check_either` as JSON Schema."""
    names = dict.fromkeys(name for form in forms for name in form)
    given, left_out = {"type": ["string", "array"]}, {"type": "null"}
    return {
        "oneOf": [
            {
                "required": list(form),
                "properties": {name: given if name in form else left_out for name in names},
            }
            for form in forms
        ]
    }


_DOCUMENTS = (("documents",), ("texts",))
_SIDES = (
    ("text_1", "text_2"),
    ("queries", "documents"),
    ("queries", "items"),
    ("data_1", "data_2"),
)


RERANKER_FIELDS = ("use_activation", "instruction")
"""The fields that only rerankers read."""


class PairRequest(CutRequest):
    """The common fields of requests that pair texts."""

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_SCORE_FIELDS

    use_activation: bool | None = Field(
        None,
        description="Whether the score is the model's number after its activation, such as a "
        "sigmoid, or the number itself. Default true. Only for rerankers.",
    )
    instruction: str | None = Field(
        None,
        max_length=MAX_INSTRUCTION_CHARS,
        description="What fits a query. Only for rerankers that read it, such as Qwen3-Reranker. "
        "Default: passages that answer a web search.",
    )


class RerankRequest(PairRequest):
    """Documents to sort by how well they answer a query."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "query": "What is the capital of France?",
                "documents": ["Berlin is a city.", "Paris is the capital of France."],
            },
            **either_of(*_DOCUMENTS),
        }
    )
    id_prefix: ClassVar[str] = "rerank"

    query: Text = Field(description="The text that the documents are compared with.")
    documents: _Documents | None = Field(None, description='Texts, or objects `{"text": ...}`.')
    texts: _Documents | None = Field(
        None, description="TEI's name for documents. The answer is then an array, as in TEI."
    )
    top_n: int | None = Field(
        None,
        ge=0,
        le=MAX_TOKEN_COUNT,
        description="Return only this many documents, the best. Default, and 0: all.",
    )
    return_documents: bool | None = Field(
        None, description="Repeat each document's text in the answer. Default true."
    )
    return_text: bool | None = Field(
        None, description="With texts: repeat each text in the answer. Default false."
    )
    raw_scores: bool | None = Field(
        None,
        description="With texts: true means the same as use_activation false. It does not change "
        "cosines of embeddings.",
    )
    truncate: bool | None = Field(
        None, description="With texts: keep as many tokens of each text as the model takes."
    )

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        check_either(self, *_DOCUMENTS)
        if self.texts is None:
            for name in ("return_text", "raw_scores", "truncate"):
                if getattr(self, name) is not None:
                    raise InvalidParameter(
                        f"{name} needs texts in place of documents; send texts, or leave {name} "
                        "out",
                        param=name,
                    )
        return self

    @property
    def ranked(self) -> list[str]:
        """The documents to sort."""
        return self.documents or self.texts or []

    @property
    def kept_tokens(self) -> int | None:
        """Tokens to keep of each text, as in `truncate_prompt_tokens`."""
        if self.truncate_prompt_tokens is None and self.truncate:
            return -1
        return self.truncate_prompt_tokens


class ScoreRequest(PairRequest):
    """Pairs of texts: one text with each of the others, or texts with the same index."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"text_1": "The sky is blue.", "text_2": ["It is azure."]},
            **either_of(*_SIDES),
        }
    )
    id_prefix: ClassVar[str] = "score"

    text_1: Texts | None = Field(None, description="A text, or as many as text_2 has.")
    text_2: Texts | None = Field(None, description="A text or several.")
    queries: Texts | None = Field(None, description="vLLM's newer name for text_1.")
    documents: Texts | None = Field(
        None, description="vLLM's newer name for text_2, together with queries."
    )
    items: Texts | None = Field(None, description="Another name for documents.")
    data_1: Texts | None = Field(None, description="Another name for text_1.")
    data_2: Texts | None = Field(None, description="Another name for text_2.")

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        one, other = self.sides
        num_first, num_second = len(self.first), len(self.second)
        if num_first not in (1, num_second):
            raise InvalidParameter(
                f"{one} has {num_first} texts and {other} has {num_second}; {one} must have one "
                f"text, or as many as {other}",
                param=one,
            )
        return self

    @property
    def sides(self) -> tuple[str, str]:
        """The names by which the texts came.

        Raises:
            InvalidParameter: there are none, or several.
        """
        one, other = check_either(self, *_SIDES)
        return one, other

    @property
    def first(self) -> list[str]:
        """One text, or as many as `second` has."""
        return getattr(self, self.sides[0]) or []

    @property
    def second(self) -> list[str]:
        """The texts that `first` is compared with."""
        return getattr(self, self.sides[1]) or []


def check_either(body: BaseModel, *forms: tuple[str, ...]) -> tuple[str, ...]:
    """The group of fields that was sent.

    Raises:
        InvalidParameter: a field of the group is missing, or a field of another group was sent too.
    """
    names = dict.fromkeys(name for form in forms for name in form)
    sent = {name for name in names if getattr(body, name) is not None}
    form = max(forms, key=lambda form: len(sent & set(form)))  # the first of equal ones
    for name in form:
        if name not in sent:
            raise InvalidParameter(f"{name}: this field is required", param=name)
    for name in names:
        if name in sent and name not in form:
            raise InvalidParameter(
                f"{name} means the same as {' or '.join(form)}; send one of them", param=name
            )
    return form


@dataclass(slots=True)
class Document:
    """A ranked document."""

    text: str


@dataclass(slots=True, kw_only=True)
class Ranked:
    """A document's index in the request, and how well it fits."""

    index: int
    document: Document | None
    relevance_score: float


class RankedText(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A ranked document in TEI's form; `text` is there if requested."""

    index: int
    score: float
    text: str | None = None


@dataclass(slots=True, kw_only=True)
class RerankAnswer:
    """The ranked documents, the best first."""

    id: str
    model: str
    usage: EmbeddingUsage
    results: list[Ranked]


@dataclass(slots=True, kw_only=True)
class Score:
    """The score of the pair with this index."""

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


@dataclass(slots=True, kw_only=True)
class RerankerCard(TextModelCard):
    """A served reranker. The fields after `parent` say what it takes and returns."""

    architecture: str
    activation: Activation
    """What the model's number passes to become a score; none leaves it unchanged."""
    max_inputs: int
    """The most pairs of a request."""
