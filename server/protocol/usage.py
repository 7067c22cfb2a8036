"""The answer of `/v1/usage`."""

from dataclasses import dataclass
from typing import Literal


@dataclass(slots=True, kw_only=True)
class UsageRow:
    """What one API key has used of one model."""

    api_key: str | None
    """The name of the API key; null for requests without one."""
    model: str
    operation: str
    num_requests: int
    input_tokens: int
    cached_tokens: int
    """Those of the input tokens that were found in the prefix cache."""
    output_tokens: int
    num_results: int
    """Finished texts, pictures, or inputs that were embedded or scored."""


@dataclass(slots=True, kw_only=True)
class DayOfUsage:
    """What was used on one day."""

    date: str
    """The day in UTC."""
    data: list[UsageRow]


@dataclass(slots=True, kw_only=True)
class UsageReport:
    """What was used since the server started, and on each day, the newest first."""

    object: Literal["usage"] = "usage"
    since: int
    data: list[UsageRow]
    days: list[DayOfUsage]
