"""The plot of docs/SCALING.md: what eight replicas do under more and more load."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

_STYLES = {
    "prefixes": ("#3b6fb6", "o-", "by prefix and work"),
    "least work": ("#5b9a4b", "s-", "by work alone"),
    "random": ("#c0504d", "^-", "by chance"),
}


def plot_rates(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Goodput and the wait for the first token by offered load, for each policy."""
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "tandem", "svg.fonttype": "none"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for policy, (colour, style, label) in _STYLES.items():
        own = [row for row in rows if row["policy"] == policy]
        offered = [row["rate"] for row in own]
        left.plot(
            offered,
            [row["rate"] * row["share_good"] for row in own],
            style,
            color=colour,
            label=label,
        )
        right.plot(offered, [row["p95_first_s"] for row in own], style, color=colour, label=label)
    left.set_ylabel("well-served requests a second")
    right.set_ylabel("seconds to the first token, p95")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("requests a second, for each of 8 replicas")
        axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
