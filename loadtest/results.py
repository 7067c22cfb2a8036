"""Result files: JSON that diffs well, one line per request."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RUN_FORMAT = "loadtest-run/1"
COMPARISON_FORMAT = "loadtest-comparison/1"
IMAGES_FORMAT = "loadtest-images/1"
DECODING_FORMAT = "loadtest-decoding/1"
HOT_LOADS_FORMAT = "loadtest-hot-loads/1"
TURNS_FORMAT = "loadtest-turns/1"
SWAPS_FORMAT = "loadtest-swaps/1"

_FORMATS = (
    *(RUN_FORMAT, COMPARISON_FORMAT, IMAGES_FORMAT),
    *(DECODING_FORMAT, HOT_LOADS_FORMAT, TURNS_FORMAT, SWAPS_FORMAT),
)
_LINE_LENGTH = 110


def save_result(document: dict[str, Any], path: Path) -> None:
    """Write atomically, so that an interrupted write never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(render_json(document) + "\n")
    part.replace(path)


def keeping(document: dict[str, Any], path: Path | None) -> Callable[[dict[str, Any]], None]:
    """A function that adds measurements to a result, and writes it if `path` is given."""

    def save(measured: dict[str, Any]) -> None:
        document.update(measured)
        if path is not None:
            save_result(document, path)

    return save


def load_any_result(path: Path) -> dict[str, Any]:
    """Load a result. Raises ValueError if the file does not have one of the formats above."""
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(document, dict) or document.get("format") not in _FORMATS:
        raise ValueError(f"{path.name} is not one of: {', '.join(_FORMATS)}")
    return document


def render_json(value: Any, indent: str = "", *, one_line: bool = False) -> str:
    """Indented JSON in which values that fit on a line, and all requests, take one line."""
    compact = json.dumps(value, ensure_ascii=False)
    if one_line or not isinstance(value, dict | list) or not value:
        return compact
    if len(compact) + len(indent) <= _LINE_LENGTH:
        return compact
    inner = indent + " "
    if isinstance(value, dict):
        parts = [
            f"{json.dumps(key)}: {_render_requests(item, inner)}"
            if key == "requests"
            else f"{json.dumps(key)}: {render_json(item, inner)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}}}"
    parts = [render_json(item, inner) for item in value]
    return "[\n" + ",\n".join(inner + part for part in parts) + f"\n{indent}]"


def _render_requests(rows: list[Any], indent: str) -> str:
    inner = indent + " "
    lines = [inner + render_json(row, one_line=True) for row in rows]
    return "[\n" + ",\n".join(lines) + f"\n{indent}]"
