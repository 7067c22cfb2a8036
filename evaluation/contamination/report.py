"""What a method found, as JSON and as a table."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluation.contamination.base_rate import Separation, from_paraphrases, from_unseen
from evaluation.contamination.methods import METHODS
from evaluation.contamination.order import order_p_value
from evaluation.report import Report
from evaluation.resampling import Groups
from evaluation.score_rows import Floats
from evaluation.task import Task

IN_GENERAL = (
    "A small p-value says that these items differ from the base rate, not why. A large one does "
    "not say that the model has not seen them."
)


def item_finding(
    method: str,
    task: Task,
    scores: Sequence[float],
    base: Task | None,
    base_scores: Sequence[float],
    *,
    paired: bool,
    seed: int,
) -> Report:
    """The finding of a method that scores items.

    Args:
        paired: whether each item of the base is a paraphrase of the task's item at its place.
    """
    if base is None:
        return _finding(method, scores, (), None)
    groups = Groups([item.group for item in task.items])
    if paired:
        found = from_paraphrases(scores, base_scores, groups, seed=seed)
    else:
        base_groups = Groups([item.group for item in base.items])
        found = from_unseen(scores, base_scores, groups, base_groups, seed=seed)
    values = {"p_value": found.p_value, "test": found.test}
    return _finding(method, scores, base_scores, found) | values


def order_finding(preferred: Floats, base: Floats | None, *, seed: int) -> Report:
    """The finding of the published order, which needs no base rate.

    Args:
        preferred: how much each order of each stretch is preferred; the published one is first.
        base: the same of the unseen items.
    """
    scores = preferred[:, 0].tolist()
    base_scores: list[float] = [] if base is None else base[:, 0].tolist()
    found = None
    if base is not None:
        singles, base_singles = (Groups([None] * len(one)) for one in (scores, base_scores))
        found = from_unseen(scores, base_scores, singles, base_singles, seed=seed)
    return _finding("order", scores, base_scores, found) | {
        "p_value": order_p_value(preferred, seed=seed),
        "base_p_value": None if base is None else order_p_value(base, seed=seed),
        "test": f"permutation test of {preferred.shape[1]} orders of {len(preferred)} stretches",
    }


def _finding(
    method: str, scores: Sequence[float], base: Sequence[float], found: Separation | None
) -> Report:
    values: dict[str, Any] = {
        "value": _mean(scores),
        "base_rate": _mean(base) if base else None,
        "p_value": None,
        "cannot_say": METHODS[method],
        "scores": list(scores),
        "base_scores": list(base),
    }
    if found is not None:
        interval = found.interval
        values["auroc"] = {"value": found.auroc, "low": interval.low, "high": interval.high}
    return values


def contamination_table(report: Report) -> Group:
    """One row per method, and what it cannot say."""
    table = Table(title=f"{report['task']}, {report['model']}", title_justify="left")
    for name in ("method", "score", "base rate", "AUROC (95 % interval)", "p-value"):
        table.add_column(name, justify="left" if name == "method" else "right")
    notes = []
    for name, found in report["methods"].items():
        base, p_value, area = found["base_rate"], found["p_value"], found.get("auroc")
        table.add_row(
            name,
            f"{found['value']:.3f}",
            "none" if base is None else f"{base:.3f}",
            ""
            if area is None
            else f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})",
            "none" if p_value is None else f"{p_value:.4f}",
        )
        notes.append(f"{name}: {found['cannot_say']}")
        if found.get("base_p_value") is not None:
            notes.append(f"order of the base rate's items: p-value {found['base_p_value']:.4f}")
    if any(found["p_value"] is None for found in report["methods"].values()):
        notes.append("Without a base rate there is no p-value: give --unseen or --paraphrases.")
    return Group(table, *(Text(note) for note in [*notes, IN_GENERAL]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
