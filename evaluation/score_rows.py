"""What a score is computed from: one row of numbers per item, whose weighted sum gives its value.

A mean has the rows (score, 1). BLEU has counts of n-grams, so that its value for a resample of the
items comes from sums, as for the items themselves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ScoreRows:
    """The rows of a score.

    Attributes:
        rows: [items, columns].
        values: the scores of sums of rows: [sums, columns] → [sums].
        is_binary: whether the score is a mean of zeros and ones.
        signature: sacrebleu's description of how it was computed, if it was.
    """

    rows: Floats
    values: Callable[[Floats], Floats]
    is_binary: bool = False
    signature: str | None = None

    @property
    def value(self) -> float:
        """The score of all items."""
        return float(self.values(self.rows.sum(axis=0, keepdims=True))[0])

    @property
    def per_item(self) -> Floats:
        """The score of each item alone."""
        return self.values(self.rows)


def mean_rows(scores: Sequence[float]) -> ScoreRows:
    """The rows of a mean."""
    return ratio_rows(scores, np.ones(len(scores)))


def ratio_rows(sums: Sequence[float], counts: Sequence[float] | Floats) -> ScoreRows:
    """The rows of a mean of parts, of which each item has a sum and a number."""
    return ScoreRows(np.stack([sums, counts], axis=1).astype(np.float64), _ratios)


def share_rows(scores: Sequence[float]) -> ScoreRows:
    """The rows of a share: a mean of zeros and ones."""
    return replace(mean_rows(scores), is_binary=True)


def _ratios(sums: Floats) -> Floats:
    return np.asarray(sums[:, 0] / sums[:, 1], np.float64)
