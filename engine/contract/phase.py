"""Where the time of a request went."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a request's time, such as its wait for an adapter."""

    name: str
    start_s: float
    """The value of `time.time()` at its start."""
    duration_s: float
    num_tokens: int = 0
    """The number of tokens that were computed in it, if it is about tokens."""
    parts: "tuple[Phase, ...]" = ()

    @property
    def end_s(self) -> float:
        return self.start_s + self.duration_s
