"""Settings as fields of dataclasses, each with its help text and bounds."""

from dataclasses import MISSING, field, fields
from typing import Any

from engine.errors import InvalidParameter

GIB = 1 << 30
"""The unit of settings whose names end in `_gib`, in bytes."""


def knob(
    default: Any = MISSING,
    help: str = "",
    *,
    ge: float | None = None,
    le: float | None = None,
    form: str | None = None,
    names_files: bool = False,
) -> Any:
    """A dataclass field with a help text and bounds. Without a default it must be given.

    The text feeds `--help` and the docs' table. `form` describes the possible values where the type
    does not. Fields with `names_files` hold paths of this machine: clients neither set nor see
    them."""
    metadata = {"help": help, "ge": ge, "le": le, "form": form, "names_files": names_files}
    return field(default=default, metadata=metadata)


def check_bounds(settings: Any) -> None:
    """Check all numbers of a dataclass whose fields are knobs.

    Raises:
        InvalidParameter: a number is out of bounds; the message gives them.
    """
    for f in fields(settings):
        value = getattr(settings, f.name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        low, high = f.metadata.get("ge"), f.metadata.get("le")
        if (low is None or low <= value) and (high is None or value <= high):
            continue
        bound = " and ".join(
            [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        )
        raise InvalidParameter(f"{f.name} is {value}; it must be {bound}", param=f.name)
