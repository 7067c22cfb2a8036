"""Reads what `/draw` is asked for: options in front, written as for `tandem draw`, then the
prompt."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from server.settings.problem import did_you_mean
from server.terminal.pictures import lora_of

_OPTIONS: Mapping[str, tuple[str, Callable[[str], Any], str]] = {
    "--size": ("size", str, "128x128"),
    "--seed": ("seed", int, "7"),
    "--steps": ("num_inference_steps", int, "20"),
    "--lora": ("loras", lora_of, "NAME, or NAME:0.8 for a scale"),
    "--negative-prompt": ("negative_prompt", str, '"dark, blurry"'),
    "--model": ("model", str, "an id that `tandem models` lists"),
}
"""Options → the field of the request, what reads the value, and an example of one."""
DRAW_OPTIONS = tuple(_OPTIONS)
_OPTION = re.compile(r"(--[\w-]*)(?:[ =]+(\"[^\"]*\"|'[^']*'|[^\s-]\S*|-\d\S*))?\s*")


class DrawingProblem(Exception):
    """The options cannot be read. `str(problem)` is one line."""


def drawing_fields(text: str) -> dict[str, Any]:
    """The fields of a request for a picture.

    Raises:
        DrawingProblem: there is no such option, or its value is missing or wrong.
    """
    fields: dict[str, Any] = {}
    while (found := _OPTION.match(text)) is not None:
        name, value = found[1], (found[2] or "").strip("\"'")
        if name not in _OPTIONS:
            hint = did_you_mean(name, _OPTIONS) or f"; there are {', '.join(_OPTIONS)}"
            raise DrawingProblem(f"There is no option {name}{hint}")
        field, read, example = _OPTIONS[name]
        try:
            one = read(value)
        except ValueError:
            one = None
        if not value or one is None:
            raise DrawingProblem(f"{name} needs a value, such as {example}")
        fields[field] = [*fields.get(field, ()), one] if field == "loras" else one
        text = text[found.end() :]
    if not text:
        raise DrawingProblem("Say what to draw: /draw --size 128x128 a red circle")
    return {**fields, "prompt": text}
