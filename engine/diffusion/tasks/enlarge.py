"""Brings a first pass's result to the size of the second pass.

If the shape differs, both ends of the longer side are cut off.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from engine.contract.draw import Enlarging
from engine.contract.pixels import Pixels
from engine.pictures.arrays import array_of, pixels_of

_LATENT_MODES: Mapping[Enlarging, tuple[str, bool]] = {
    Enlarging.LATENT: ("bilinear", False),
    Enlarging.LATENT_ANTIALIASED: ("bilinear", True),
    Enlarging.LATENT_BICUBIC: ("bicubic", False),
    Enlarging.LATENT_BICUBIC_ANTIALIASED: ("bicubic", True),
    Enlarging.LATENT_NEAREST: ("nearest", False),
    Enlarging.LATENT_NEAREST_EXACT: ("nearest-exact", False),
}
"""torch's interpolation mode, and whether it is antialiased."""
_FILTERS = {
    Enlarging.LANCZOS: Image.Resampling.LANCZOS,
    Enlarging.NEAREST: Image.Resampling.NEAREST,
}


def enlarge_latents(latents: torch.Tensor, width: int, height: int, how: Enlarging) -> torch.Tensor:
    """Enlarge latents `[1, C, h, w]` to `[1, C, height, width]`; sizes are in latent cells."""
    rows, columns = _kept(latents.shape[3], latents.shape[2], width, height)
    mode, antialias = _LATENT_MODES[how]
    kept = latents[:, :, rows, columns]
    return F.interpolate(kept, size=(height, width), mode=mode, antialias=antialias)


def enlarge_picture(picture: Pixels, width: int, height: int, how: Enlarging) -> Pixels:
    """Enlarge an RGB picture."""
    rows, columns = _kept(picture.width, picture.height, width, height)
    kept = Image.fromarray(array_of(picture)[rows, columns])
    return pixels_of(np.asarray(kept.resize((width, height), _FILTERS[how])))


def _kept(from_width: int, from_height: int, width: int, height: int) -> tuple[slice, slice]:
    """The rows and columns of the middle that has the new shape. Cutting comes before enlarging, as
    an enlarged long strip could have any size."""
    across = min(from_width, max(1, round(from_height * width / height)))
    down = min(from_height, max(1, round(from_width * height / width)))
    left, top = (from_width - across) // 2, (from_height - down) // 2
    return slice(top, top + down), slice(left, left + across)
