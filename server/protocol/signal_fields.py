"""The fields of a request that ask how sure the model was of its text."""

from pydantic import BaseModel, Field

from engine.errors import InvalidParameter

DEFAULT_THRESHOLD = 0.2
DEFAULT_MEANING_THRESHOLD = 0.7


class SignalFields(BaseModel):
    """Fields that ask for facts about a text."""

    return_uncertainty: bool | None = Field(
        None,
        description="Return how uncertain the model was of each text: means over its tokens, and "
        "where tokens were unlikely. Default false.",
    )
    uncertainty_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="With return_uncertainty: tokens with a lower probability form "
        f"low_confidence_spans. Default {DEFAULT_THRESHOLD:g}.",
    )

    @property
    def uncertain_below(self) -> float | None:
        """Probability below which tokens are reported; None: none are."""
        if not self.return_uncertainty:
            return None
        threshold = self.uncertainty_threshold
        return DEFAULT_THRESHOLD if threshold is None else threshold


class MeaningFields(BaseModel):
    """Fields that ask for facts about all answers of a chat."""

    semantic_entropy: bool | None = Field(
        None,
        description="Report how many different things the n answers say, by comparing their "
        "embeddings. Needs an embedding model on this server, and n of at least 2. "
        "Not with stream.",
    )
    semantic_threshold: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="With semantic_entropy: answers with at least this cosine mean the same. "
        f"Default {DEFAULT_MEANING_THRESHOLD:g}.",
    )
    embedding_model: str | None = Field(
        None,
        max_length=256,
        description="With semantic_entropy: id of the embedding model. May be left out if "
        "exactly one is served.",
    )

    @property
    def meaning_threshold(self) -> float:
        """Cosine from which on answers mean the same."""
        threshold = self.semantic_threshold
        return DEFAULT_MEANING_THRESHOLD if threshold is None else threshold


def check_meanings(request: MeaningFields, num_choices: int, *, is_stream: bool) -> None:
    """Refuse fields that cannot be combined.

    Raises:
        InvalidParameter: names the field.
    """
    if not request.semantic_entropy:
        for name in ("semantic_threshold", "embedding_model"):
            if getattr(request, name) is not None:
                raise InvalidParameter(f"{name} needs semantic_entropy: true", param=name)
    elif is_stream:
        raise InvalidParameter(
            "semantic_entropy is not available with stream: true; leave one of them out",
            param="semantic_entropy",
        )
    elif num_choices < 2:
        raise InvalidParameter(
            f"semantic_entropy compares several answers, and n is {num_choices}; n must be at "
            "least 2",
            param="n",
        )


def check_signals(request: SignalFields) -> None:
    """Refuse fields that cannot be combined.

    Raises:
        InvalidParameter: names the field.
    """
    if request.uncertainty_threshold is not None and not request.return_uncertainty:
        raise InvalidParameter(
            "uncertainty_threshold needs return_uncertainty: true",
            param="uncertainty_threshold",
        )
