"""Ratings as tables and as a plot."""

from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluation.plot import Mark, Panel, plot_panels
from evaluation.problem import EvaluationProblem
from evaluation.report import Report


def ratings_table(report: Report) -> Group:
    """The ratings, and below them what they depend on."""
    table = Table()
    table.add_column("model")
    for name in ("rating", "95 % interval", "Elo", "95 % interval", "votes", "points"):
        table.add_column(name, justify="right")
    for one in report["models"]:
        table.add_row(
            one["model"],
            *_rating_cells(one),
            f"{one['elo']:.0f}",
            f"{one['elo_low']:.0f} to {one['elo_high']:.0f}",
            str(one["num_votes"]),
            f"{one['share_of_points']:.1%}",
        )
    lines = [_counted(report), _order_line(report), _agreement_line(report)]
    notes = [Text(note, "yellow") for note in report["notes"]]
    return Group(table, *(Text(line) for line in lines if line), *notes)


def plot_ratings(report: Report, path: Path) -> None:
    """Write a picture of the ratings with their intervals."""
    if report["models"][0]["rating"] is None:
        raise EvaluationProblem(f"there is nothing to plot: {report['notes'][-1]}")
    marks = [
        Mark(one["model"], one["rating"], one["rating_low"], one["rating_high"])
        for one in report["models"]
    ]
    plot_panels([Panel("rating by Bradley and Terry", marks)], path)


def _rating_cells(one: dict[str, Any]) -> tuple[str, str]:
    if one["rating"] is None:
        return "none", "none"
    return f"{one['rating']:.0f}", f"{one['rating_low']:.0f} to {one['rating_high']:.0f}"


def _counted(report: Report) -> str:
    return (
        f"{report['num_votes']} votes about {report['num_prompts']} prompts, "
        f"{report['num_ties']} of them ties"
    )


def _order_line(report: Report) -> str:
    effect = report["order_effect"]
    if effect is None:
        return "the effect of the order is unknown: no pair of models was shown in both orders"
    value, low, high = (100 * effect[name] for name in ("value", "low", "high"))
    return (
        f"the answer shown first gets {50 + value:.1f} % of the points "
        f"(95 % interval {50 + low:.1f} to {50 + high:.1f}); without an effect of the order, 50 %"
    )


def _agreement_line(report: Report) -> str:
    agreement = report["agreement"]
    if agreement is None:
        return ""
    share = agreement["num_same"] / agreement["num"]
    return (
        f"{agreement['num_same']} of {agreement['num']} pairs of answers ({share:.0%}) were judged "
        "alike in both orders"
    )
