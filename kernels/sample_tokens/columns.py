"""The columns of `SamplingRows.table`, as `columns.h` has them."""

import re
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^COLUMN\((double|int64_t), +(\w+), +([-\d.e]+)\)$", re.MULTILINE)
_COMMENT = re.compile(r"//.*")


@dataclass(frozen=True, slots=True)
class Column:
    """8 bytes of a row: the bits of an fp64, or an int64."""

    name: str
    is_float: bool
    neutral: float
    """The value that changes nothing."""


def read_columns(text: str) -> tuple[Column, ...]:
    """The columns of a header.

    Raises:
        ValueError: a line of it is not understood, or there are two columns of a name.
    """
    columns = tuple(
        Column(name, kind == "double", float(neutral))
        for kind, name, neutral in _LINE.findall(text)
    )
    names = {column.name for column in columns}
    if not len(names) == len(columns) == len(re.findall(r"\bCOLUMN\(", _COMMENT.sub("", text))):
        raise ValueError("columns.h: not every COLUMN(type, name, value) is a line of its own")
    return columns


COLUMNS = read_columns((Path(__file__).parent / "columns.h").read_text())
COLUMN = {column.name: place for place, column in enumerate(COLUMNS)}
"""Where each is in a row."""
