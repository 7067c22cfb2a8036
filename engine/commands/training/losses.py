"""Keeps the loss of each step, and writes it as a table and a curve."""

import csv
from pathlib import Path
from statistics import fmean

WINDOW = 20
"""The number of steps whose mean loss is shown, as single batches differ too much."""
_FIELDS = ("step", "loss", "learning_rate")


class Losses:
    """The losses of one training.

    Args:
        output: the training's folder, which gets `loss.csv` and `loss.png`.
    """

    def __init__(self, output: Path) -> None:
        self._table = output / "loss.csv"
        self._picture = output / "loss.png"
        self._rows: list[tuple[int, float, float]] = []

    def resume(self, step: int) -> None:
        """Read the losses that were written, up to a step."""
        if not self._table.exists():
            return
        with self._table.open(newline="") as file:
            rows = [tuple(row[name] for name in _FIELDS) for row in csv.DictReader(file)]
        self._rows = [(int(at), float(loss), float(rate)) for at, loss, rate in rows]
        self._rows = [row for row in self._rows if row[0] <= step]

    def add(self, step: int, loss: float, rate: float) -> None:
        self._rows.append((step, loss, rate))

    def mean_of_first(self) -> float:
        return fmean(loss for _, loss, _ in self._rows[:WINDOW])

    def mean_of_last(self) -> float:
        return fmean(loss for _, loss, _ in self._rows[-WINDOW:])

    def write(self) -> None:
        """Write the table and the curve."""
        with self._table.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_FIELDS)
            writer.writerows(self._rows)
        self._draw()

    def _draw(self) -> None:
        from matplotlib.figure import Figure

        steps = [step for step, _, _ in self._rows]
        losses = [loss for _, loss, _ in self._rows]
        means = [fmean(losses[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(losses))]
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.plot(steps, losses, linewidth=0.6, alpha=0.4, label="batch")
        axes.plot(steps, means, linewidth=1.5, label=f"mean of {WINDOW} steps")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.legend()
        axes.grid(alpha=0.3)
        figure.savefig(self._picture, dpi=120)
