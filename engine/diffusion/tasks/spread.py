"""Continues the known part of a picture smoothly into the rest."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

_FINEST_RADIUS = 4
_BOX_PASSES = 3
_OPAQUE_COVER = 0.25
"""The share of known pixels in a blur's window from which it hides what wider blurs drew."""


def spread(
    values: torch.Tensor, known: torch.Tensor, radii: Sequence[int], start: torch.Tensor
) -> torch.Tensor:
    """Lay blurs of the known pixels over `start`, from wide to narrow; returns `[1, C, H, W]`.

    Far from the known pixels the colours are those of all of them, near them those of the nearest.

    Args:
        values: `[1, C, H, W]`.
        known: `[1, 1, H, W]` in [0, 1], the weight of each pixel's value.
        radii: the blurs' radii in pixels, descending.
        start: what lies under the blurs, with `values`' shape or of one pixel.
    """
    spread_out = start.expand_as(values).clone()
    for radius in radii:
        cover = blurred(known, radius)
        mean = blurred(values * known, radius) / cover.clamp(min=1e-6)
        spread_out += (mean - spread_out) * (cover / _OPAQUE_COVER).clamp(max=1.0)
    return spread_out


def blurred(planes: torch.Tensor, radius: int) -> torch.Tensor:
    """Blur `[1, C, H, W]` nearly like a Gaussian, by repeated boxes; borders repeat.

    Wide blurs run on fewer pixels, since they leave no detail.
    """
    height, width = planes.shape[2:]
    factor = max(1, radius // _FINEST_RADIUS)
    reach = radius // factor
    if factor > 1:
        planes = F.adaptive_avg_pool2d(
            planes, (math.ceil(height / factor), math.ceil(width / factor))
        )
    for _ in range(_BOX_PASSES):
        planes = F.pad(planes, (0, 0, reach, reach), mode="replicate")
        planes = F.avg_pool2d(planes, (2 * reach + 1, 1), stride=1)
        planes = F.pad(planes, (reach, reach, 0, 0), mode="replicate")
        planes = F.avg_pool2d(planes, (1, 2 * reach + 1), stride=1)
    if factor > 1:
        planes = F.interpolate(planes, size=(height, width), mode="bilinear", align_corners=False)
    return planes
