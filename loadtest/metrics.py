"""Percentiles, throughput and goodput of a run, from its request records."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loadtest.record import RequestRecord

PERCENTILES = (50, 90, 99)
ITL_LIMITS_MS = (50, 100, 200)
"""Limits of the time between tokens for every run's goodput: fluent, quick and slow to read."""


def percentile(ordered: Sequence[float], q: float) -> float:
    """The q-th percentile (0-100) of sorted values, interpolated linearly as numpy does."""
    if not ordered:
        raise ValueError("no values to take a percentile of")
    rank = (len(ordered) - 1) * q / 100
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


def distribution_ms(values_s: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum in milliseconds; None without values."""
    if not values_s:
        return None
    ordered = sorted(values_s)
    summary = {"mean": sum(ordered) / len(ordered)}
    summary |= {f"p{q}": percentile(ordered, q) for q in PERCENTILES}
    summary["max"] = ordered[-1]
    return {name: round(value * 1000, 3) for name, value in summary.items()}


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in milliseconds that one request must keep, each optional.

    ttft: to the first text. itl: 99 % of the request's gaps between chunks. tpot: the mean time per
    output token after the first. e2e: to the end.
    """

    limits_ms: dict[str, float]

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Parse limits such as `ttft=2000,itl=100`. Raises ValueError."""
        limits = {}
        for part in text.split(","):
            name, _, value = part.strip().partition("=")
            if name not in _SLO_VALUES:
                raise ValueError(f"{name!r} is not one of {', '.join(_SLO_VALUES)}")
            try:
                limits[name] = float(value)
            except ValueError:
                raise ValueError(f"{part!r}: the limit must be a number of milliseconds") from None
            if not 0 < limits[name] < math.inf:
                raise ValueError(f"{part!r}: the limit must be a positive number of milliseconds")
        return cls(limits)

    def is_met(self, record: RequestRecord) -> bool:
        """Whether a request keeps the limits: a failed one never, a missing value always."""
        if record.error is not None:
            return False
        values = {name: _SLO_VALUES[name](record) for name in self.limits_ms}
        return all(
            value is None or value * 1000 <= self.limits_ms[name] for name, value in values.items()
        )


def _gap_p99_s(record: RequestRecord) -> float | None:
    gaps = record.gaps_s
    return percentile(sorted(gaps), 99) if gaps else None


_SLO_VALUES: dict[str, Callable[[RequestRecord], float | None]] = {
    "ttft": lambda record: record.ttft_s,
    "itl": _gap_p99_s,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.end_s,
}


def summarise(
    records: Sequence[RequestRecord], wall_s: float, num_planned: int, slo: Slo | None = None
) -> dict[str, Any]:
    """The numbers of a run, as they are stored.

    Latencies and tokens are those of the requests that succeeded. Failures are counted in
    `num_failed` and `errors`, and their time is part of `wall_s`, so they never improve a rate.
    """
    succeeded = [record for record in records if record.error is None]
    output_tokens = sum(record.num_tokens for record in succeeded)
    summary: dict[str, Any] = {
        "num_planned": num_planned,
        "num_sent": len(records),
        "num_ok": len(succeeded),
        "num_failed": len(records) - len(succeeded),
        "num_short": sum(record.num_tokens < record.max_tokens for record in succeeded),
        "num_without_usage": sum(record.output_tokens is None for record in succeeded),
        "errors": dict(Counter(record.error for record in records if record.error)),
        "wall_s": round(wall_s, 4),
        "max_in_flight": max_in_flight(records),
        "prompt_tokens": sum(record.prompt_tokens or 0 for record in succeeded),
        "cached_tokens": sum(record.cached_tokens or 0 for record in succeeded),
        "output_tokens": output_tokens,
        "output_tok_s": round(output_tokens / wall_s, 3) if wall_s else 0.0,
        "request_s": round(len(succeeded) / wall_s, 4) if wall_s else 0.0,
        "ttft_ms": distribution_ms([r.ttft_s for r in succeeded if r.ttft_s is not None]),
        "itl_ms": distribution_ms([gap for record in succeeded for gap in record.gaps_s]),
        "tpot_ms": distribution_ms([r.tpot_s for r in succeeded if r.tpot_s is not None]),
        "e2e_ms": distribution_ms([r.end_s for r in succeeded if r.end_s is not None]),
    }
    summary["itl_goodput_request_s"] = {
        str(limit): _goodput(Slo({"itl": limit}), records, wall_s) for limit in ITL_LIMITS_MS
    }
    lateness = [record.sent_s - record.at_s for record in records if record.at_s is not None]
    if lateness:
        summary["send_lateness_ms"] = distribution_ms(lateness)
    if slo is not None:
        num_met = sum(slo.is_met(record) for record in records)
        summary["slo"] = {
            "limits_ms": slo.limits_ms,
            "num_met": num_met,
            "ratio": round(num_met / len(records), 4) if records else 0.0,
            "goodput_request_s": _goodput(slo, records, wall_s),
        }
    return summary


def _goodput(slo: Slo, records: Sequence[RequestRecord], wall_s: float) -> float:
    """Requests a second that keep the limits."""
    num_met = sum(slo.is_met(record) for record in records)
    return round(num_met / wall_s, 4) if wall_s else 0.0


class Sent(Protocol):
    """A request with its time of sending and its duration."""

    @property
    def sent_s(self) -> float: ...

    @property
    def end_s(self) -> float | None: ...


def max_in_flight(records: Sequence[Sent]) -> int:
    """The most requests that were unanswered at once."""
    edges = [(record.sent_s, 1) for record in records]
    edges += [(record.sent_s + record.end_s, -1) for record in records if record.end_s is not None]
    now = most = 0
    for _, step in sorted(edges):
        now += step
        most = max(most, now)
    return most
