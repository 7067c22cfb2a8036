"""The plots of docs/sampling.md, from docs/sampling.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

from tools.sampling_study.page import TASKS

_BLUE, _RED, _GREEN, _GREY = "#3b6fb6", "#c0504d", "#5b9a4b", "#8a8a8a"


def plot_all(data: Mapping[str, Any], folder: Path) -> None:
    """Write the plots that have numbers."""
    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "tandem", "svg.fonttype": "none"})
    if "temperature" in data:
        _temperature(data["temperature"], folder / "sampling-temperature.svg")
    if "accuracy" in data:
        _accuracy(data["accuracy"]["tasks"], folder / "sampling-accuracy.svg")
    if "hot" in data:
        _samplers(data["hot"], "topic", "similarity to the opening", folder / "sampling-hot.svg")
    if "cold" in data:
        _samplers(data["cold"], "looping", "share of texts that loop", folder / "sampling-cold.svg")
    if "signals" in data:
        _signals(data["signals"], folder / "sampling-signals.svg")


def _temperature(data: Mapping[str, Any], path: Path) -> None:
    rows = data["rows"]
    xs = [row["temperature"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    left.plot(xs, [row["looping"] for row in rows], "o-", color=_RED, label="texts that loop")
    left.plot(
        xs,
        [row["looped_tokens"] for row in rows],
        "s--",
        color=_RED,
        alpha=0.5,
        label="their tokens in loops",
    )
    left.plot(xs, [row["topic"] for row in rows], "o-", color=_GREEN, label="similarity to opening")
    left.set_xlabel("temperature")
    left.set_ylim(0, 1)
    left.legend(frameon=False)
    right.plot(
        xs, [row["surprise"] for row in rows], "o-", color=_BLUE, label="surprise of its text"
    )
    right.plot(
        xs,
        [row["entropy"] for row in rows],
        "s--",
        color=_BLUE,
        alpha=0.5,
        label="entropy that it met",
    )
    right.axhline(data["written_surprise"], color=_GREY, linestyle=":")
    right.text(0.02, data["written_surprise"] + 0.1, "surprise of written text", color=_GREY)
    right.set_xlabel("temperature")
    right.set_ylabel("nats per token")
    right.legend(frameon=False, loc="center left")
    _save(figure, path)


def _accuracy(tasks: Mapping[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 3.2))
    for place, (name, rows) in enumerate(tasks.items()):
        differences = [row["compared"] for row in rows[1:]]
        for axis, some, key in ((left, rows, "value"), (right, differences, "difference")):
            # Side by side, so that intervals do not cover each other.
            xs = [row["temperature"] + 0.02 * place for row in rows[-len(some) :]]
            ends = [[abs(row[key] - row[end]) for row in some] for end in ("low", "high")]
            style = {"fmt": "o-", "ms": 4, "color": (_BLUE, _RED)[place], "label": TASKS[name]}
            axis.errorbar(xs, [row[key] for row in some], ends, **style)
    left.set_ylabel("share of right answers")
    left.set_ylim(0, 1)
    right.set_ylabel("difference from temperature 0")
    right.axhline(0, color=_GREY, linestyle=":")
    for axis in (left, right):
        axis.set_xlabel("temperature")
        axis.legend(frameon=False)
    _save(figure, path)


def _samplers(data: Mapping[str, Any], key: str, label: str, path: Path) -> None:
    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    for name, row in data.items():
        axis.plot(row["distinct"], row[key], "o", color=_RED if name == "none" else _BLUE)
        place = (row["distinct"], row[key])
        axis.annotate(
            name, place, xytext=(3, 3), fontsize=7, rotation=30, textcoords="offset points"
        )
    axis.set_xlabel("distinct pairs of words in a text")
    axis.set_ylabel(label)
    axis.margins(0.15)
    _save(figure, path)


def _signals(data: Mapping[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(5.2, 3.2))
    for is_wrong, colour, name in ((False, _GREEN, "right"), (True, _RED, "wrong")):
        some = [one for one in data["questions"] if one["is_wrong"] == is_wrong]
        axis.plot(
            [one["surprise"] for one in some],
            [one["semantic_entropy"] for one in some],
            "o",
            color=colour,
            alpha=0.7,
            label=name,
        )
    axis.set_xlabel("mean surprise of the greedy answer, nats")
    axis.set_ylabel("semantic entropy of 8 answers, nats")
    axis.legend(frameon=False)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
