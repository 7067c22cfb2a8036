"""What is known of a structure once it is read, before its grammar is made."""

from collections.abc import Callable
from dataclasses import dataclass

from engine.contract.structure import Structure
from engine.errors import InvalidParameter

QUICK_SECONDS = 0.1
"""Processor time; structures that are read within it overtake slower ones."""
CPU_SECONDS = 3.0
"""The most processor time for any structure."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The reading of a structure that can be honoured."""

    text: str
    """The text of the grammar, which is known to compile."""
    num_bytes: int = 0
    """The memory that the grammar took."""
    seconds: float = 0.0
    """The processor time that reading took."""


Read = Callable[[Structure, float], Reading | None]
"""Reads a structure within a number of processor seconds, or raises an EngineError. Returns None if
it takes longer."""


def too_much(structure: Structure, what: str) -> InvalidParameter:
    """Make the error for a structure that takes too much."""
    return InvalidParameter(
        f"reading {structure.param} takes {what}; make it smaller, or nest it less",
        param=structure.param,
    )
