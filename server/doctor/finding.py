"""What was found about one part of a machine."""

from dataclasses import dataclass
from typing import Literal

Health = Literal["ok", "limited", "broken"]
"""`limited`: it serves, but more slowly or with less than it could. `broken`: it cannot serve."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        part: the part of the machine.
        found: its state, in a sentence without a full stop.
        fix: the one command or setting that helps, if it is not ok.
    """

    part: str
    health: Health
    found: str
    fix: str | None = None
