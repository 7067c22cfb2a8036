"""Pictures as tensors: conversions, division by alpha, and resampling by torch."""

import numpy as np
import torch
import torch.nn.functional as F

from engine.contract.pixels import Pixels
from engine.pictures.arrays import Bytes, pixels_of

LEAST_ALPHA = 0.5 / 255
"""The least alpha at which a pixel shows in 8 bits and its colour can be found by division."""


def as_tensor(array: Bytes) -> torch.Tensor:
    """Levels `[H, W, C]` or `[H, W]` as a new fp32 tensor `[C, H, W]`."""
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(planes.astype(np.float32, order="C"))


def as_bytes(planes: torch.Tensor) -> Bytes:
    """The array `[H, W, C]` of levels `[C, H, W]`, rounded and clipped."""
    levels = planes.round().clamp_(0, 255).to(torch.uint8)
    array: Bytes = levels.permute(1, 2, 0).contiguous().cpu().numpy()
    return array


def to_signed(rgb: Bytes) -> torch.Tensor:
    """RGB levels as `[1, 3, H, W]` in [-1, 1], as autoencoders take it."""
    return (as_tensor(rgb) / 255.0 * 2.0 - 1.0)[None]


def from_signed(image: torch.Tensor) -> Pixels:
    """The picture of `[3, H, W]` in [-1, 1], rounded and clipped."""
    return pixels_of(as_bytes((image.detach().float() / 2 + 0.5) * 255))


def straight(colours: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Premultiplied colours divided by alpha, or by `LEAST_ALPHA` if that is more, in [0, 1]."""
    return (colours / alpha.clamp(min=LEAST_ALPHA)).clamp(0, 1)


def resampled(planes: torch.Tensor, height: int, width: int, kernel: str) -> torch.Tensor:
    """Planes `[N, C, H, W]` in another size, antialiased.

    Args:
        kernel: `bilinear` or `bicubic`.
    """
    if width == 1:
        # When torch 2 shrinks a column, it gives all its rows the first row's values.
        return _interpolated(planes.mT.contiguous(), (1, height), kernel).mT
    return _interpolated(planes, (height, width), kernel)


def _interpolated(planes: torch.Tensor, size: tuple[int, int], kernel: str) -> torch.Tensor:
    return F.interpolate(planes, size=size, mode=kernel, align_corners=False, antialias=True)
