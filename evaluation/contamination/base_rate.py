"""Whether the items of a task score higher than items that are known to be unseen."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from evaluation.difference import compare
from evaluation.interval import Interval, auroc_interval
from evaluation.resampling import Groups, relabellings
from evaluation.score_rows import mean_rows


@dataclass(frozen=True, slots=True)
class Separation:
    """How well scores tell the items from unseen ones.

    Attributes:
        auroc: how often an item scores higher than an unseen one; ties count as half.
        p_value: how probable so high scores of the items are if they are unseen too.
        test: how that was found.
    """

    auroc: float
    interval: Interval
    p_value: float
    test: str


def from_unseen(
    scores: Sequence[float],
    unseen: Sequence[float],
    groups: Groups,
    unseen_groups: Groups,
    *,
    seed: int,
) -> Separation:
    """Compare with other items, by which of all groups could have been the task's."""
    auroc, interval = _auroc(scores, unseen, groups.num, unseen_groups.num)
    rows = mean_rows(rankdata([*scores, *unseen]))
    num = len(scores)
    sums = np.concatenate([groups.sums(rows.rows[:num]), unseen_groups.sums(rows.rows[num:])])
    total = sums.sum(axis=0)
    found = []
    for chosen in relabellings(len(sums), groups.num, seed=seed):
        own = chosen @ sums
        found.append(rows.values(own) - rows.values(total - own))
    differences = np.concatenate(found)
    p_value = float((differences >= differences[0] - 1e-9).mean())
    return Separation(auroc, interval, p_value, "permutation test of ranks")


def from_paraphrases(
    scores: Sequence[float], rewritten: Sequence[float], groups: Groups, *, seed: int
) -> Separation:
    """Compare each item with its own paraphrase, by swaps."""
    auroc, interval = _auroc(scores, rewritten, groups.num, groups.num)
    found = compare(mean_rows(rewritten), mean_rows(scores), groups, seed=seed)
    one_sided = found.p_value / 2 if found.difference > 0 else 1 - found.p_value / 2
    return Separation(auroc, interval, one_sided, found.test)


def _auroc(
    scores: Sequence[float], others: Sequence[float], num: int, num_others: int
) -> tuple[float, Interval]:
    """The area under the ROC curve, and its interval for so many independent groups."""
    ranks = rankdata([*scores, *others])[: len(scores)]
    auroc = float((ranks.mean() - (len(scores) + 1) / 2) / len(others))
    return auroc, auroc_interval(auroc, num, num_others)
