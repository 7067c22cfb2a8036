"""How long products with packed and with plain weights take, and which kind that speaks for."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from kernels.linear_gguf.quant_type import GGUFType

ROWS = (1, 16, 64)
"""One client, many, and a chunk of a prompt."""
MARGIN = 1.1
"""Times as slow as plain ones that packed weights may be: they take a third of the memory, and a
busy machine's measurement must not toss a coin."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductTimes:
    """Of one type of weights: processor time of one thread per product, at each of `ROWS`."""

    packed_s: tuple[float, ...]
    plain_s: tuple[float, ...]
    """Of the same weights as numbers of the activations' type."""
    measured_at: float
    """Unix time."""

    def __post_init__(self) -> None:
        times = (*self.packed_s, *self.plain_s)
        if not len(self.packed_s) == len(self.plain_s) == len(ROWS):
            raise ValueError(f"{len(times)} times; {2 * len(ROWS)} are needed")
        if not all(math.isfinite(one) and one > 0 for one in times):
            raise ValueError(f"times are {times}; all must be positive")

    @property
    def ratios(self) -> tuple[float, ...]:
        """Packed over plain, at each of `ROWS`."""
        return tuple(p / q for p, q in zip(self.packed_s, self.plain_s, strict=True))

    @property
    def mean_ratio(self) -> float:
        """Their geometric mean: none of `ROWS` counts more for taking longer."""
        return math.exp(math.fsum(map(math.log, self.ratios)) / len(ROWS))

    def as_json(self) -> dict[str, Any]:
        """A dictionary from which `from_json` makes an equal object."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> "ProductTimes":
        """
        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        return cls(
            packed_s=tuple(map(float, content["packed_s"])),
            plain_s=tuple(map(float, content["plain_s"])),
            measured_at=float(content["measured_at"]),
        )


def mean_ratio(
    times: Mapping[GGUFType, ProductTimes], num_weights: Mapping[GGUFType, int]
) -> float:
    """Packed over plain for a model with so many weights of each type: geometric mean."""
    total = sum(num_weights.values())
    logs = (math.log(times[one].mean_ratio) * count for one, count in num_weights.items())
    return math.exp(math.fsum(logs) / total)


def prefers_plain(ratio: float) -> bool:
    """Whether a `mean_ratio` is worth the memory of plain weights."""
    return ratio > MARGIN
