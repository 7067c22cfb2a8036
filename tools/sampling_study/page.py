"""The part of docs/sampling.md that is written from docs/sampling.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from loadtest.markdown import origin, table

COMMAND = "python -m tools.sampling_study"
TASKS = {"arithmetic": "40 sums", "options": "60 questions with options"}


def sections(data: Mapping[str, Any]) -> dict[str, str]:
    """The text of each pair of marks."""
    return {"accuracy": accuracy(data["accuracy"]) if "accuracy" in data else "Not measured yet."}


def accuracy(found: Mapping[str, Any]) -> str:
    """A table of both tasks, and from where on accuracy is below that at temperature 0."""
    columns = list(found["tasks"].values())
    rows = [
        [f"{places[0]['temperature']:g}", *(cell for row in places for cell in _cells(row))]
        for places in zip(*columns, strict=True)
    ]
    heads = ["temperature"]
    for name in found["tasks"]:
        heads += [TASKS[name], "difference from 0"]
    told = [
        f"{TASKS[name][0].upper()}{TASKS[name][1:]}: {_clear(first_clear(rows))}."
        for name, rows in found["tasks"].items()
    ]
    return "\n\n".join(
        [table(heads, rows, num_text_columns=0), " ".join(told), origin(dict(found))]
    )


def first_clear(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The temperature from which on all intervals of the difference from temperature 0 are below
    zero; None if there is none."""
    found = None
    for row in reversed(rows):
        if row["compared"]["high"] >= 0:
            break
        found = row["temperature"]
    return found


def _cells(row: Mapping[str, Any]) -> tuple[str, str]:
    its = row["compared"]
    return (
        f"{100 * row['value']:.0f} % ({100 * row['low']:.0f} to {100 * row['high']:.0f})",
        f"{100 * its['difference']:+.0f} ({100 * its['low']:+.0f} to {100 * its['high']:+.0f})"
        if row["temperature"]
        else "",
    )


def _clear(temperature: float | None) -> str:
    if temperature is None:
        return "no interval of the difference stays below zero"
    return (
        f"from a temperature of {temperature:g} on, all intervals of the difference are below zero"
    )
