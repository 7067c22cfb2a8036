"""A clock that stands still until it is set."""

from dataclasses import dataclass


@dataclass
class Clock:
    """Gives the same time until a test changes it."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s
