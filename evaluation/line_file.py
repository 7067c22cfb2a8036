"""Files of JSON lines that grow: a line about what they are, then lines that are written at once.

A program that was killed goes on where its file ends.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from evaluation.problem import EvaluationProblem
from evaluation.task import read_bytes


class LineFile:
    """Such a file, open for more lines.

    Args:
        header: its first line; `format` names the form of the file.
        take_in: called with the path of a file that exists, whose last line is complete; raises if
            it has another header.
    """

    def __init__(
        self, path: Path, header: Mapping[str, Any], take_in: Callable[[Path], None]
    ) -> None:
        if path.exists() and path.stat().st_size:
            _drop_incomplete_line(path, header["format"])
            take_in(path)
            self._file = path.open("a", encoding="utf-8")
            return
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise EvaluationProblem(
                f"{path}: cannot be written: {error.strerror}; choose another --output"
            ) from None
        self.write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self._file.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Write a line at once."""
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()


def check_format(path: Path, data: bytes, form: str) -> None:
    """Raise if the first line of a file does not say that it has this form."""
    try:
        header = json.loads(data.partition(b"\n")[0])
        found = header["format"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != form:
        raise EvaluationProblem(
            f"{path}: this is not a file of the form {form}; name one of those, or a new file"
        )


def _drop_incomplete_line(path: Path, form: str) -> None:
    """Remove the end of a line that a killed run was writing to a file of this form."""
    data = read_bytes(path)
    check_format(path, data, form)
    if not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)
