"""Reports as tables for a terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from evaluation.report import Report
from evaluation.scores import SCORES


def runs_table(reports: Sequence[Report]) -> Group:
    """The scores of runs."""
    table = Table()
    for name in ("run", "model", "task", "score", "value", "95 % interval", "items"):
        table.add_column(name, justify="right" if name in ("value", "items") else "left")
    for report in reports:
        for name, found in report["scores"].items():
            written = SCORES[name].written
            table.add_row(
                Path(report["file"]).stem,
                report["asking"]["model"],
                report["task"]["name"],
                name,
                written(found["value"]),
                f"{written(found['low'])} to {written(found['high'])}",
                _counted(report["num_answered"], report["num_groups"]),
            )
    return Group(table, *_notes(note for report in reports for note in report["notes"]))


def comparison_table(report: Report) -> Group:
    """The differences of two runs, one table per score."""
    return Group(
        *(_difference(name, found, report) for name, found in report["scores"].items()),
        *_notes(report["notes"]),
    )


def _difference(name: str, found: dict[str, Any], report: Report) -> Table:
    written = SCORES[name].written
    table = Table(show_header=False, title=name, title_justify="left")
    counted = _counted(report["num_compared"], report["num_groups"])
    for path, asking, side in zip(
        report["files"], report["askings"], ("first", "second"), strict=True
    ):
        table.add_row(f"{path} ({asking['model']})", written(found[side]))
    interval = f"{written(found['low'], sign=True)} to {written(found['high'], sign=True)}"
    table.add_row("difference", f"{written(found['difference'], sign=True)} ({interval})")
    table.add_row("p-value", f"{found['p_value']:.4f} ({found['test']})")
    table.add_row("items", counted)
    needed = found["items_needed"]
    table.add_row(
        "items needed to show this difference",
        "no difference was seen" if needed is None else str(needed),
    )
    detectable = written(found["detectable"])
    table.add_row("difference that this many items show", f"{detectable} or more")
    return table


def _counted(num: int, num_groups: int | None) -> str:
    return str(num) if num_groups is None else f"{num} in {num_groups} groups"


def _notes(notes: Any) -> list[Text]:
    return [Text(note, "yellow") for note in notes]
