"""What clients have used, by API key, model and operation: since the start, and on each day."""

import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import NamedTuple

MAX_DAYS = 31
"""The most days that are kept."""
MAX_ROWS = 1024
"""The most rows of a day. Further models of a key are counted together."""
OTHER = "(other)"
"""The name of those models."""


class User(NamedTuple):
    """Who used what."""

    key: str | None
    """The name of the API key; None if the request had none."""
    model: str
    operation: str


@dataclass(slots=True, kw_only=True)
class Used:
    """How much was used."""

    num_requests: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    """Those of the input tokens that were found in the prefix cache."""
    output_tokens: int = 0
    num_results: int = 0
    """Finished texts, pictures, or inputs that were embedded or scored."""

    def add(self, more: "Used") -> None:
        for name, number in zip(self.__slots__, astuple(more), strict=True):
            setattr(self, name, getattr(self, name) + number)


Rows = dict[User, Used]


class UsageTable:
    """Event loop only."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.since_s = clock()
        self.total: Rows = {}
        self.days: dict[str, Rows] = {}
        """By date (UTC), the oldest first."""

    def add(self, user: User, used: Used) -> None:
        """Count what a request has used."""
        date = datetime.fromtimestamp(self._clock(), UTC).date().isoformat()
        if date not in self.days:
            self.days[date] = {}
            while len(self.days) > MAX_DAYS:
                del self.days[next(iter(self.days))]
        for rows in (self.total, self.days[date]):
            is_new = user not in rows and len(rows) >= MAX_ROWS
            row = user._replace(model=OTHER) if is_new else user
            rows.setdefault(row, Used()).add(used)
