"""Times of products with packed and with plain weights, and the choice that follows from them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kernels.linear_gguf.quant_type import GGUFType

ROWS = (1, 16, 64)
"""Rows of the timed products: one client, many, and a chunk of a prompt."""
MARGIN = 1.1
"""The largest ratio of packed to plain times at which packed weights are kept: they take a third of
the memory, and noise in a measurement on a busy machine must not decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductTimes:
    """The times of one type of weights: one thread's processor time per product, at each of
    `ROWS`."""

    packed_s: tuple[float, ...]
    plain_s: tuple[float, ...]
    """Times with the same weights in the activations' type."""
    measured_at: float
    """Unix time."""

    def __post_init__(self) -> None:
        times = (*self.packed_s, *self.plain_s)
        if not len(self.packed_s) == len(self.plain_s) == len(ROWS):
            raise ValueError(f"there are {len(times)} times; there must be {2 * len(ROWS)}")
        if not all(math.isfinite(one) and one > 0 for one in times):
            raise ValueError(f"times are {times}; all must be positive")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Packed times over plain times, at each of `ROWS`."""
        return tuple(p / q for p, q in zip(self.packed_s, self.plain_s, strict=True))

    @property
    def mean_ratio(self) -> float:
        """The geometric mean of the ratios, in which slow products of `ROWS` count no more than
        others."""
        return math.exp(math.fsum(map(math.log, self.ratios)) / len(ROWS))

    def as_json(self) -> dict[str, Any]:
        """Return a dictionary from which `from_json` makes an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "ProductTimes":
        """Read a dictionary made by `as_json`.

        Raises:
            KeyError, TypeError, ValueError: the content is something else.
        """
        return cls(
            packed_s=tuple(map(float, content["packed_s"])),
            plain_s=tuple(map(float, content["plain_s"])),
            measured_at=float(content["measured_at"]),
        )


def mean_ratio(
    times: Mapping[GGUFType, ProductTimes], num_weights: Mapping[GGUFType, int]
) -> float:
    """Return the geometric mean of packed over plain times, for a model with these numbers of
    weights of each type."""
    total = sum(num_weights.values())
    logs = (math.log(times[one].mean_ratio) * count for one, count in num_weights.items())
    return math.exp(math.fsum(logs) / total)


def prefers_plain(ratio: float) -> bool:
    """Whether plain weights are worth their memory at this `mean_ratio`."""
    return ratio > MARGIN
