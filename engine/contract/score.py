"""Requests for scores of pairs of texts and their answers."""

from dataclasses import dataclass, field
from typing import Literal

from engine.contract.request import Event
from engine.contract.whole_texts import WholeTextsInfo, WholeTextsRequest, WholeTextsStats

Activation = Literal["sigmoid", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairsRequest(WholeTextsRequest["PairEvent"]):
    """Pairs of texts, each of which is one input: both texts with the tokens around them."""

    first_lengths: list[int] = field(default_factory=list)
    """The number of tokens of each input that have the first token type; the tokens after them have
    the second one. Models with one token type ignore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairEvent(Event):
    """The score of one pair: its first and last event."""

    score: float = 0.0
    """The model's number, before any activation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PairStats(WholeTextsStats):
    """Statistics of an engine that scores pairs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RerankerInfo(WholeTextsInfo):
    """Facts about a model that scores pairs of texts."""

    activation: Activation
    """What turns the model's number into the score that clients get unless they ask for the
    number."""
    has_prompt: bool
    """Whether it reads a pair in the prompt of Qwen3-Reranker; otherwise its tokenizer puts the
    pair together."""

    @property
    def log_fields(self) -> dict[str, object]:
        return {"max_model_len": self.max_model_len, "activation": self.activation}
