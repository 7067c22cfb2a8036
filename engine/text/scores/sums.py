"""Sums of the scores of single tokens, for the report about a text."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.contract.host import Tell
from engine.text.scores.passages import Passage
from engine.text.scores.token_classes import TOKEN_CLASSES, TokenClass

LEAST_LOGPROB = -9999.0
"""Stands for the logarithm of probability zero, as in answers over HTTP."""


_LARGEST_MEAN = 700.0
"""The largest mean of surprises; e to a larger power overflows a float."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison with another model's score of the same token, that of the original."""

    surprise: float
    """Minus ln p, in nats."""
    divergence: float
    """Kullback-Leibler divergence of the model's distribution from the original's, in nats."""
    agrees: bool
    """Whether both models have the same likeliest token."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """The score of one token."""

    surprise: float
    """Minus ln p, in nats."""
    comparison: Comparison | None = None


@dataclass(slots=True)
class _Mean:
    """A mean of numbers with its standard error."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.squares += value * value

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def error(self) -> float:
        """The standard error; 0 for a single number, whose error is unknown."""
        variance = self.squares / self.count - self.mean**2
        return math.sqrt(max(0.0, variance) / (self.count - 1)) if self.count > 1 else 0.0


@dataclass(slots=True)
class ScoreSums:
    """Sums of scores over some tokens of a text."""

    num_bytes: int | None = 0
    """Bytes of the tokens; None once the bytes of a token are unknown."""
    surprise: _Mean = field(default_factory=_Mean)
    original: _Mean = field(default_factory=_Mean)
    divergence: _Mean = field(default_factory=_Mean)
    num_agreeing: int = 0

    def add(self, score: TokenScore, num_bytes: int | None) -> None:
        """Count a token."""
        known = self.num_bytes is not None and num_bytes is not None
        self.num_bytes = (self.num_bytes or 0) + (num_bytes or 0) if known else None
        self.surprise.add(score.surprise)
        if score.comparison is not None:
            self.original.add(score.comparison.surprise)
            self.divergence.add(score.comparison.divergence)
            self.num_agreeing += score.comparison.agrees

    @property
    def perplexity(self) -> float:
        return _perplexity(self.surprise)

    def report(self) -> dict[str, Any]:
        """The results by the names of `tandem perplexity --json`; without an original, those about
        it are left out."""
        found: dict[str, Any] = {
            "tokens": self.surprise.count,
            "perplexity": self.perplexity,
            "perplexity_error": self.perplexity * self.surprise.error,
            "bits_per_byte": self.surprise.total / math.log(2) / self.num_bytes
            if self.num_bytes
            else None,
        }
        if self.divergence.count:
            found |= {
                "original_perplexity": _perplexity(self.original),
                "kl_divergence": self.divergence.mean,
                "kl_divergence_error": self.divergence.error,
                "top1_agreement": self.num_agreeing / self.divergence.count,
            }
        return found


class TextScores:
    """Sums over a text, and over each class of its tokens."""

    def __init__(self) -> None:
        self.total = ScoreSums()
        self._classes: dict[TokenClass, ScoreSums] = {}

    def add(self, passage: Passage, scores: Iterable[TokenScore]) -> None:
        """Count the scored tokens of a passage, in their order."""
        if passage.facts is None:
            for score in scores:
                self.total.add(score, None)
            return
        for score, (num_bytes, name) in zip(scores, passage.facts, strict=True):
            self.total.add(score, num_bytes)
            self._classes.setdefault(name, ScoreSums()).add(score, num_bytes)

    def report(self) -> dict[str, Any]:
        """The results of `ScoreSums.report` for all tokens, and under `classes` those of each
        class."""
        classes = {
            name: self._classes[name].report() for name in TOKEN_CLASSES if name in self._classes
        }
        return {**self.total.report(), "classes": classes}


def text_report(
    passages: Sequence[Passage], score: Callable[[Passage], Iterable[TokenScore]], tell: Tell
) -> dict[str, Any]:
    """Score passages one by one; return `TextScores.report` with the number and length of the
    passages."""
    scores = TextScores()
    for number, passage in enumerate(passages, 1):
        scores.add(passage, score(passage))
        tell({"passage": number, "of": len(passages), "perplexity": scores.total.perplexity})
    size = len(passages[0].token_ids)
    return {"context": size, "passages": len(passages), **scores.report()}


def _perplexity(surprise: _Mean) -> float:
    return math.exp(min(surprise.mean, _LARGEST_MEAN))
