"""The columns of `SamplingRows.table` and the steps of a row, read from `columns.h`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^COLUMN\((double|int64_t), +(\w+), +([-\d.e]+)\)$", re.MULTILINE)
_STEP = re.compile(r"^(?:LATE_)?STEP\((\w+)\)$", re.MULTILINE)
_NO_LINE = re.compile(r"//.*|#.*")


@dataclass(frozen=True, slots=True)
class Column:
    """A column of 8 bytes per row: the bits of an fp64, or an int64."""

    name: str
    is_float: bool
    neutral: float
    """The value that changes nothing."""


def read_columns(text: str) -> tuple[Column, ...]:
    """Return the columns of a header.

    Raises:
        ValueError: a line cannot be read, or two columns have the same name.
    """
    columns = tuple(
        Column(name, kind == "double", float(neutral))
        for kind, name, neutral in _LINE.findall(text)
    )
    _check_each("COLUMN", [column.name for column in columns], text)
    return columns


def read_steps(text: str) -> tuple[str, ...]:
    """Return the steps of a header.

    Raises:
        ValueError: see `read_columns`.
    """
    names = tuple(_STEP.findall(text))
    _check_each("STEP", names, text)
    return names


def _check_each(macro: str, names: Sequence[str], text: str) -> None:
    if not len(set(names)) == len(names) == _NO_LINE.sub("", text).count(f"{macro}("):
        raise ValueError(
            f"columns.h: each {macro}(...) must be on a line of its own and have a unique name"
        )


_TEXT = (Path(__file__).parent / "columns.h").read_text()
COLUMNS = read_columns(_TEXT)
COLUMN = {column.name: place for place, column in enumerate(COLUMNS)}
"""The place of each column in a row."""
STEPS = read_steps(_TEXT)
"""The steps that leave tokens out or scale the rest, in the usual order."""
