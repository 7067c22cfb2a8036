"""Matches the colours of what was drawn under a mask to those of the input around it.

An autoencoder does not return the input's colours exactly, and the answer has the input's own bytes
outside the mask: without this, a drawn rectangle would show by its tint. The difference in colour
can be measured where the picture shows the protected input; it is continued under the mask, as
seamless cloning continues the differences at the edge (Pérez et al. 2003).
"""

import torch
import torch.nn.functional as F

from engine.diffusion.tasks.spread import spread
from engine.pictures.arrays import Bytes
from engine.pictures.tensors import as_bytes, as_tensor

_RADII = (256, 64, 16, 8, 4)
_FULL, _BESIDE = 255, 40
"""The trust in general, and in cells next to redrawn ones, since decoders mix neighbours."""


def trust_levels(cells: torch.Tensor, factor: int) -> Bytes:
    """How well a drawn picture shows the input: not at all in redrawn cells, and less next to them.

    Args:
        cells: `[1, 1, h, w]`, above 0 where something is redrawn.
        factor: the pixels per cell.

    Returns:
        Levels `[h * factor, w * factor]` from 0 to 255.
    """
    redrawn = (cells > 0).float()
    around = F.max_pool2d(redrawn, 3, stride=1, padding=1)
    levels = torch.full_like(redrawn, _FULL)
    levels[around > 0] = _BESIDE
    levels[redrawn > 0] = 0
    pixels: Bytes = F.interpolate(levels, scale_factor=factor)[0, 0].to(torch.uint8).numpy()
    return pixels


def match_colours(drawn: Bytes, seen: Bytes, trust: Bytes) -> Bytes:
    """Correct `drawn` by its mean difference from `seen`, measured where both show the input.

    Args:
        drawn: `[H, W, 3]`.
        seen: the input as the model saw it, `[H, W, 3]`.
        trust: levels `[H, W]` from `trust_levels`.
    """
    if not trust.any():
        return drawn
    known = as_tensor(trust)[None] / _FULL
    planes = as_tensor(drawn)[None]
    errors = as_tensor(seen)[None] - planes
    mean = (errors * known).sum(dim=(2, 3), keepdim=True) / known.sum()
    return as_bytes((planes + spread(errors, known, _RADII, mean))[0])
