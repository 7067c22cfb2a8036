"""The plot of docs/quantization.md, from docs/quantization.json: the loss by number of bits."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from tools.quantization_table.formats import HQQ_BITS

Row = Mapping[str, Any]


def plot_losses(rows: Mapping[str, Row], path: Path) -> None:
    """Draw what HQQ loses by language and by kind of token. It is one method with four numbers of
    bits, so nothing else differs between the points of a line."""
    # The same numbers give the same bytes.
    with matplotlib.rc_context({"font.size": 9, "svg.hashsalt": "tandem", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8.4, 4.4), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        for axis, key, title in zip(axes, ("groups", "kinds"), _TITLES, strict=True):
            _draw(axis, {bits: rows[f"HQQ, {bits} bits"][key] for bits in HQQ_BITS})
            axis.set_title(title, loc="left", fontsize=9)
        axes[0].set_ylabel("loss above the original's, nats per token")
        figure.savefig(path, metadata={"Date": None})


_TITLES = ("by language of the text", "by kind of token, English and Python")


def _draw(axis: Any, found: Mapping[int, Mapping[str, Row]]) -> None:
    places = range(len(found))
    colours = matplotlib.colormaps["tab20"]
    lines = sorted(found[min(found)], key=lambda name: -found[min(found)][name]["difference"])
    for number, name in enumerate(lines):
        points = [one[name] for one in found.values()]
        # Side by side, so that intervals do not cover each other.
        xs = [place + 0.03 * (number - len(lines) / 2) for place in places]
        values = [one["difference"] for one in points]
        ends = [[abs(one["difference"] - one[end]) for one in points] for end in ("low", "high")]
        axis.errorbar(xs, values, ends, fmt="o-", ms=3, lw=1, color=colours(number), label=name)
    axis.set_xticks(places, [f"{bits} bits" for bits in found])
    axis.set_yscale("symlog", linthresh=0.1)
    axis.axhline(0, color="#8a8a8a", lw=0.8)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=7, loc="upper left")
