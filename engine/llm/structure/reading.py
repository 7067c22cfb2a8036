"""What is known of a structure that has been read, before its grammar is made."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.errors import InvalidParameter
from engine.structure import Structure

QUICK_SECONDS = 0.1
"""Of processor time: what is read within it passes by what takes longer."""
CPU_SECONDS = 3.0
"""Of processor time, for any structure."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A structure that can be honoured."""

    text: str
    """Of its grammar, which is known to compile."""
    num_bytes: int = 0
    """What the grammar took."""
    seconds: float = 0.0
    """Of processor time."""


Read = Callable[[Structure, float], Reading | None]
"""Reads a structure in so many seconds of processor time, or raises an EngineError; None: it takes
longer."""


def too_much(structure: Structure, what: str) -> InvalidParameter:
    """What a client is told of a structure that takes too much."""
    return InvalidParameter(
        f"{structure.param} takes {what} to read; make it smaller, or nest it less",
        param=structure.param,
    )
