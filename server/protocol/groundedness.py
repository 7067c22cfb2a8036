"""Bodies of `POST /v1/groundedness`: does an answer say what given passages say?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.embeddings import EmbeddingModelRequest, EmbeddingUsage
from server.protocol.scores import UNSUPPORTED_SCORE_FIELDS, Text

MAX_PASSAGES = 256
MAX_SENTENCES = 128
"""The most sentences of an answer: each is compared with each sentence of the passages."""
MAX_ANSWER_CHARS = 1 << 16
MAX_PASSAGE_CHARS = 1 << 20
"""The most characters of all passages together: splitting and comparing them takes about a quarter
of a second."""

Risk = Literal["intrinsic", "extrinsic"]


class GroundednessRequest(EmbeddingModelRequest):
    """An answer, and the passages that it should rest on."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "answer": "The tower was finished in 1889.",
                "passages": ["The tower is 330 metres tall. It was completed in March 1889."],
            }
        }
    )
    id_prefix: ClassVar[str] = "ground"
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_SCORE_FIELDS,
        "truncate_prompt_tokens": (),
    }

    answer: Text = Field(
        max_length=MAX_ANSWER_CHARS, description=f"At most {MAX_SENTENCES} sentences."
    )
    passages: Annotated[list[Text], Field(min_length=1, max_length=MAX_PASSAGES)] = Field(
        description=f"The texts that the answer should be based on: at most {MAX_PASSAGE_CHARS} "
        "characters together."
    )
    risk_threshold: float | None = Field(
        None, ge=0, le=1, description="Name a risk from this value on. Default 0.5."
    )

    @model_validator(mode="after")
    def _check_size(self) -> Self:
        num_chars = sum(map(len, self.passages))
        if num_chars > MAX_PASSAGE_CHARS:
            raise InvalidParameter(
                f"passages have {num_chars} characters together; the limit is "
                f"{MAX_PASSAGE_CHARS}; send fewer at once",
                param="passages",
            )
        return self


@dataclass(slots=True, kw_only=True)
class GroundedSentence:
    """A sentence of the answer.

    Attributes:
        characters: index of its first character in the answer, and of the character after its last.
        passage: index of the passage with the most similar sentence.
        missing_terms: its terms that occur in no passage.
        conflicts: numbers, names and negations in which it differs from that passage.
    """

    characters: list[int]
    passage: int
    similarity: float
    coverage: float
    missing_terms: list[str]
    conflicts: list[str]
    intrinsic_risk: float
    extrinsic_risk: float
    risk: Risk | None


@dataclass(slots=True, kw_only=True)
class GroundednessAnswer:
    """The result for the whole answer: the mean over its sentences, and their highest risks."""

    id: str
    object: Literal["groundedness"] = "groundedness"
    created: int
    model: str
    groundedness: float
    intrinsic_risk: float
    extrinsic_risk: float
    sentences: list[GroundedSentence]
    usage: EmbeddingUsage
