"""Scores with their intervals as a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.problem import EvaluationProblem, needs_extra
from evaluation.report import Report
from evaluation.scores import SCORES

_COLOUR = "#3b6fb6"


@dataclass(frozen=True, slots=True)
class Mark:
    """A value with its interval."""

    label: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Panel:
    """Values on one axis.

    Attributes:
        limits: the ends of the axis; None to fit them to the values.
    """

    title: str
    marks: Sequence[Mark]
    limits: tuple[float, float] | None = None


def plot_runs(reports: Sequence[Report], path: Path) -> None:
    """Write a picture with a panel per score and a line per run."""
    names = dict.fromkeys(name for report in reports for name in report["scores"])
    plot_panels([_panel(name, reports) for name in names], path)


def plot_panels(panels: Sequence[Panel], path: Path) -> None:
    """Write a picture of panels; the ending of its name decides the format."""
    if path.suffix not in (".svg", ".png", ".pdf"):
        raise EvaluationProblem(f"{path}: a plot's name must end in .svg, .png or .pdf")
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise needs_extra("a plot", "matplotlib") from None
    height = 0.8 + sum(0.5 + 0.32 * len(panel.marks) for panel in panels)
    # The same numbers give the same bytes.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "tandem", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, height), layout="constrained")
        ratios = [1 + len(panel.marks) for panel in panels]
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios)[:, 0]
        for axis, panel in zip(axes, panels, strict=True):
            _draw(axis, panel)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _panel(name: str, reports: Sequence[Report]) -> Panel:
    marks = []
    for report in reports:
        if (found := report["scores"].get(name)) is not None:
            label = f"{report['asking']['model']}, {Path(report['file']).stem}"
            marks.append(Mark(label, found["value"], found["low"], found["high"]))
    return Panel(name, marks, (0.0, SCORES[name].maximum))


def _draw(axis: Any, panel: Panel) -> None:
    marks = panel.marks
    for row, mark in enumerate(marks):
        axis.plot([mark.low, mark.high], [row, row], color=_COLOUR, linewidth=1.5)
        axis.plot([mark.value], [row], "o", color=_COLOUR)
    axis.set_yticks(range(len(marks)), [mark.label for mark in marks])
    axis.set_ylim(len(marks) - 0.5, -0.5)
    if panel.limits is not None:
        axis.set_xlim(*panel.limits)
    axis.set_title(panel.title, loc="left", fontsize=9)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
