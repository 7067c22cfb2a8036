"""What must hold while a server is under load and afterwards: equal bits, no growth, no remains."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from tools.endurance.asking import Answer
from tools.endurance.order import Order
from tools.endurance.sample import Sample

LEAST_POINTS = 8
"""Fewer quiet points after the warm-up say nothing about growth."""
BOUNDS_PER_HOUR = {"memory": 64.0, "descriptors": 20.0, "threads": 10.0, "processes": 1.0}
"""How much a fitted line may rise in an hour: MiB, and numbers. pyzmq opens seven descriptors and
three threads for the first large message of a process, so these two rise and fall in such steps
with the workers that have sent one; a leak in every hundredth request is much more."""


@dataclass(slots=True)
class Twins:
    """Compares every answer with the first one to the same body."""

    firsts: dict[str, str] = field(default_factory=dict)
    num_compared: Counter[str] = field(default_factory=Counter)

    def problem(self, order: Order, answer: Answer) -> str | None:
        """Why an answer is wrong, or None if it is right."""
        if answer.has_left:
            return None
        if answer.problem:
            return f"{order.key}: {answer.problem}"
        if answer.status not in order.statuses or (answer.code and 200 in order.statuses):
            return f"{order.key}: HTTP {answer.status} {answer.code or ''}".rstrip()
        if answer.bits is None:
            return None
        first = self.firsts.setdefault(order.key, answer.bits)
        if first is not answer.bits:
            self.num_compared[order.kind] += 1
        return None if first == answer.bits else f"{order.key}: differs from the first answer"


@dataclass(frozen=True, slots=True)
class Growth:
    """The line fitted to a series after the warm-up."""

    name: str
    start: float
    per_hour: float
    bound_per_hour: float | None
    """None: the series is shown, not judged."""

    @property
    def is_too_much(self) -> bool:
        return self.bound_per_hour is not None and self.per_hour > self.bound_per_hour


def growths(samples: Sequence[Sample], warm_up_s: float) -> list[Growth]:
    """A fit for each series of the quiet samples after the warm-up; none if they are too few."""
    later = [sample for sample in samples if sample.at_s >= warm_up_s]
    if len(later) < LEAST_POINTS:
        return []
    hours = [sample.at_s / 3600 for sample in later]
    found = []
    for name in later[0].values():
        values = [sample.values().get(name, 0.0) for sample in later]
        slope = theil_sen(hours, values)
        start = median(value - slope * hour for hour, value in zip(hours, values, strict=True))
        start += slope * hours[0]
        found.append(Growth(name, start, slope, BOUNDS_PER_HOUR.get(name)))
    return found


def theil_sen(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The median of all slopes between two points, which single outliers do not move."""
    return median(
        (ys[j] - ys[i]) / (xs[j] - xs[i])
        for i in range(len(xs))
        for j in range(i + 1, len(xs))
        if xs[j] != xs[i]
    )


def remains(work: Mapping[str, float]) -> list[str]:
    """The gauges that should be zero when nobody asks, and are not."""
    return [f"{name} is {value:g} though nobody asks" for name, value in work.items() if value]
