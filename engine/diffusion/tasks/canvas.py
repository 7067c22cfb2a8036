"""Enlarges canvases, for outpainting and to a multiple of the model's grid."""

import numpy as np
import torch

from engine.contract.draw import Outpaint
from engine.diffusion.tasks.spread import blurred, spread
from engine.pictures.arrays import Bools, Bytes
from engine.pictures.tensors import as_bytes, as_tensor

_BLUR_RADII = (256, 64, 16, 4, 2)
_BASE_RADIUS = 64


def pad_to(array: Bytes, width: int, height: int) -> Bytes:
    """Repeat the right and bottom edges up to a size; takes `[H, W]` or `[H, W, C]`."""
    grow = [(0, height - array.shape[0]), (0, width - array.shape[1])]
    if grow == [(0, 0), (0, 0)]:
        return array
    grow += [(0, 0)] * (array.ndim - 2)
    return np.pad(array, grow, mode="edge")


def extend_image(array: Bytes, outpaint: Outpaint) -> Bytes:
    """Put an image `[H, W, C]` on a larger canvas; new pixels repeat the edges."""
    grow = [(outpaint.top, outpaint.bottom), (outpaint.left, outpaint.right)]
    return np.pad(array, [*grow, (0, 0)], mode="edge") if np.any(grow) else array


def extend_mask(levels: Bytes, outpaint: Outpaint) -> Bytes:
    """Put a mask `[H, W]` on a larger canvas, with nothing marked in the new part."""
    return np.pad(levels, [(outpaint.top, outpaint.bottom), (outpaint.left, outpaint.right)])


def new_area(width: int, height: int, outpaint: Outpaint) -> Bools:
    """The canvas of an image of this size, set where it is new."""
    new = np.ones((height + outpaint.top + outpaint.bottom, width + outpaint.left + outpaint.right))
    new[outpaint.top : outpaint.top + height, outpaint.left : outpaint.left + width] = 0
    return new.astype(np.bool_)


def fill_new(canvas: Bytes, new: Bools) -> Bytes:
    """Fill the new area of a canvas `[H, W, 3]` smoothly, where it repeats the edges.

    Blurs of the known pixels are laid over it, from wide to narrow: far away the colours are those
    of the whole image, at the edge those of the edge.
    """
    known = torch.from_numpy(~new).float()[None, None]
    colours = as_tensor(canvas)[None]
    filled = spread(colours, known, _BLUR_RADII, blurred(colours, _BASE_RADIUS))
    return np.where(new[..., None], as_bytes(filled[0]), canvas)
