"""The fields of a request that ask how sure the model was of its text."""

from pydantic import BaseModel, Field

from engine.errors import InvalidParameter

DEFAULT_THRESHOLD = 0.2
DEFAULT_MEANING_THRESHOLD = 0.7


class SignalFields(BaseModel):
    """What is told of a text beside it."""

    return_uncertainty: bool | None = Field(
        None,
        description="Return how uncertain the model was of each text: means over its tokens, and "
        "where they were unlikely. Default false.",
    )
    uncertainty_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="With return_uncertainty: tokens of a lower probability make up "
        f"low_confidence_spans. Default {DEFAULT_THRESHOLD:g}.",
    )

    @property
    def uncertain_below(self) -> float | None:
        """Probability of tokens that are told of; None: nothing is."""
        if not self.return_uncertainty:
            return None
        threshold = self.uncertainty_threshold
        return DEFAULT_THRESHOLD if threshold is None else threshold


class MeaningFields(BaseModel):
    """What is told of a chat's answers together."""

    semantic_entropy: bool | None = Field(
        None,
        description="Say how many things the n answers say, by comparing their embeddings. Needs "
        "an embedding model that is served beside, and n of at least 2. Not with stream.",
    )
    semantic_threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="With semantic_entropy: answers of at least this cosine say the same. "
        f"Default {DEFAULT_MEANING_THRESHOLD:g}.",
    )
    embedding_model: str | None = Field(
        None,
        max_length=256,
        description="With semantic_entropy: id of the embedding model. May be left out where "
        "exactly one is served.",
    )

    @property
    def meaning_threshold(self) -> float:
        """Cosine of answers that say the same."""
        threshold = self.semantic_threshold
        return DEFAULT_MEANING_THRESHOLD if threshold is None else threshold


def check_meanings(request: MeaningFields, num_choices: int, *, is_stream: bool) -> None:
    """
    Raises:
        InvalidParameter: names the field.
    """
    if not request.semantic_entropy:
        for name in ("semantic_threshold", "embedding_model"):
            if getattr(request, name) is not None:
                raise InvalidParameter(
                    f"{name} is only allowed with semantic_entropy: true", param=name
                )
    elif is_stream:
        raise InvalidParameter(
            "semantic_entropy is not available with stream: true", param="semantic_entropy"
        )
    elif num_choices < 2:
        raise InvalidParameter(
            f"semantic_entropy compares answers, and n is {num_choices}; ask for at least 2",
            param="n",
        )


def check_signals(request: SignalFields) -> None:
    """Refuse what contradicts itself.

    Raises:
        InvalidParameter: names the field.
    """
    if request.uncertainty_threshold is not None and not request.return_uncertainty:
        raise InvalidParameter(
            "uncertainty_threshold is only allowed with return_uncertainty: true",
            param="uncertainty_threshold",
        )
