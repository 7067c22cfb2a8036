"""The plot of docs/quantization.md, from docs/quantization.json: the loss by format."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tools.quantization_table.formats import WHOLE_BITS

Row = Mapping[str, Any]
_PANELS = {"groups": "by language", "kinds": "by kind of token, in English and Python"}


def plot_losses(rows: Mapping[str, Row], path: Path) -> None:
    """Draw what formats lose by language and by kind of token."""
    names = [name for name in WHOLE_BITS if name in rows]
    # The same numbers give the same bytes.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "tandem", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (key, title) in zip(axes, _PANELS.items(), strict=True):
            _draw(axis, [rows[name][key] for name in names])
            axis.set_title(title, loc="left", fontsize=9)
            axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
            below = sum(WHOLE_BITS[name] >= 4 for name in names) - 0.5
            axis.axvspan(below, len(names) - 0.5, color="#f3e3e2", lw=0)
            place = {"transform": axis.get_xaxis_transform(), "va": "top"}
            axis.text(below, 0.99, " below 4 bits", fontsize=7, **place)
        axes[0].set_ylabel("loss above the original's, nats per token")
        figure.savefig(path, metadata={"Date": None})


def _draw(axis: Any, found: Sequence[Mapping[str, Row]]) -> None:
    colours = matplotlib.colormaps["tab20"]
    lines = sorted(found[-1], key=lambda name: -found[-1][name]["difference"])
    for number, name in enumerate(lines):
        points = [one[name] for one in found]
        # Side by side, so that intervals do not cover each other.
        xs = [place + 0.04 * (number - len(lines) / 2) for place in range(len(points))]
        values = [one["difference"] for one in points]
        ends = [[abs(one["difference"] - one[end]) for one in points] for end in ("low", "high")]
        axis.errorbar(xs, values, ends, fmt="o-", ms=3, lw=1, color=colours(number), label=name)
    axis.axhline(0, color="#8a8a8a", lw=0.8)
    axis.set_xlim(-0.5, len(found) - 0.5)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7, loc="upper left")
