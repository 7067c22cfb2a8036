"""What a network must be to enlarge images: any module with these facts."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """What tiling must know of a network."""

    architecture: str
    scale: int
    receptive_radius: int | None
    """How far away, in pixels of the input, one can matter to an output pixel; None: any distance,
    or not known."""
    size_multiple: int = 1
    """Of the sides of what it takes."""
    min_side: int = 1
    flops_per_pixel: float
    """Multiplications and additions for a pixel of the input, about."""
    bytes_per_pixel: int
    """Memory for a pixel of the input while it runs, about."""


class Network(Protocol):
    """Takes RGB in [0, 1], `[B, 3, H, W]`, and gives it `scale` times as large, unclipped."""

    facts: NetworkFacts

    def __call__(self, images: Tensor) -> Tensor: ...
