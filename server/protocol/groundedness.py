"""Bodies of `POST /v1/groundedness`: does an answer say what given passages say?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.protocol.embeddings import EmbeddingModelRequest, EmbeddingUsage
from server.protocol.scores import UNSUPPORTED_SCORE_FIELDS, Text

MAX_PASSAGES = 256
MAX_SENTENCES = 128
"""Of an answer: each is compared with each of the passages'."""

Risk = Literal["intrinsic", "extrinsic"]


class GroundednessRequest(EmbeddingModelRequest):
    """An answer, and what it should rest on."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "answer": "The tower was finished in 1889.",
                "passages": ["The tower is 330 metres tall. It was completed in March 1889."],
            }
        }
    )
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **UNSUPPORTED_SCORE_FIELDS,
        "truncate_prompt_tokens": (),
    }

    answer: Text = Field(description=f"At most {MAX_SENTENCES} sentences.")
    passages: Annotated[list[Text], Field(min_length=1, max_length=MAX_PASSAGES)] = Field(
        description="Texts that the answer should say nothing beyond."
    )
    risk_threshold: float | None = Field(
        None, ge=0, le=1, description="From which on a risk is named. Default 0.5."
    )


@dataclass(slots=True, kw_only=True)
class GroundedSentence:
    """A sentence of the answer.

    Attributes:
        characters: of the answer: the first one's number, and that of the one behind the last.
        passage: the one with the most similar sentence.
        missing_terms: its terms that stand in no passage.
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
    """Of the whole answer: the mean over its sentences, and their highest risks."""

    id: str
    object: Literal["groundedness"] = "groundedness"
    created: int
    model: str
    groundedness: float
    intrinsic_risk: float
    extrinsic_risk: float
    sentences: list[GroundedSentence]
    usage: EmbeddingUsage
