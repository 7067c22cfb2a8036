"""The interface of a network that enlarges images: any module with these facts."""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """The facts about a network that tiling needs."""

    architecture: str
    scale: int
    receptive_radius: int | None
    """The largest distance, in pixels of the input, at which a pixel can affect an output pixel;
    None if it is unlimited or unknown."""
    size_multiple: int = 1
    """A number that divides the sides of its input."""
    min_side: int = 1
    flops_per_pixel: float
    """The approximate multiplications and additions per pixel of the input."""
    bytes_per_pixel: int
    """The approximate memory per pixel of the input while it runs."""


class Network(Protocol):
    """A network that takes RGB in [0, 1], `[B, 3, H, W]`, and returns it `scale` times as large,
    not clipped to [0, 1]."""

    facts: NetworkFacts

    def __call__(self, images: Tensor) -> Tensor: ...
