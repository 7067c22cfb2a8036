"""Growing an image: the canvas of outpainting, and padding to a multiple of the model's grid."""

import math

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from engine.diffusion.tasks.mask import Bits
from engine.diffusion.tasks.pixels import Bytes
from engine.image_types import Outpaint

_BLUR_RADII = (256, 64, 16, 4, 2)
_BASE_RADIUS = 64
_FINEST_RADIUS = 4
_BOX_PASSES = 3
_OPAQUE_COVER = 0.25
"""Share of known pixels in a blur's window from which the blur covers what wider blurs drew."""


def pad_to(array: Bytes, width: int, height: int) -> Bytes:
    """Repeats the right and bottom edge up to a size; `[H, W]` or `[H, W, C]`."""
    grow = [(0, height - array.shape[0]), (0, width - array.shape[1])]
    if grow == [(0, 0), (0, 0)]:
        return array
    grow += [(0, 0)] * (array.ndim - 2)
    return np.pad(array, grow, mode="edge")


def extend_image(array: Bytes, outpaint: Outpaint) -> Bytes:
    """`[H, W, C]` on its larger canvas; new pixels repeat the edges, transparent in RGBA."""
    grow = [(outpaint.top, outpaint.bottom), (outpaint.left, outpaint.right)]
    if not np.any(grow):
        return array
    canvas = np.pad(array, [*grow, (0, 0)], mode="edge")
    if array.shape[2] == 4:
        canvas[..., 3] = np.pad(array[..., 3], grow)
    return canvas


def extend_mask(levels: Bytes, outpaint: Outpaint) -> Bytes:
    """`[H, W]` on its larger canvas, nothing marked in the new part."""
    return np.pad(levels, [(outpaint.top, outpaint.bottom), (outpaint.left, outpaint.right)])


def new_area(width: int, height: int, outpaint: Outpaint) -> Bits:
    """The canvas of an image of this size: set where it is new."""
    new = np.ones((height + outpaint.top + outpaint.bottom, width + outpaint.left + outpaint.right))
    new[outpaint.top : outpaint.top + height, outpaint.left : outpaint.left + width] = 0
    return new.astype(np.bool_)


def overlap_band(new: Bits, feather: int) -> Bits:
    """The new area grown by `feather` px into the original, which it never covers altogether.

    Args:
        new: unset in a rectangle, the original.
    """
    rows, columns = np.flatnonzero(~new.all(axis=1)), np.flatnonzero(~new.all(axis=0))
    if not len(rows):
        return new
    radius = min(feather, _room(rows, new.shape[0]), _room(columns, new.shape[1]))
    band = np.ones_like(new)
    band[_kept(rows, new.shape[0], radius), _kept(columns, new.shape[1], radius)] = False
    return band


def fill_new(canvas: Bytes, new: Bits) -> Bytes:
    """`[H, W, 3]` of a canvas whose new area repeats the edges, smoothly filled instead.

    Blurs of the known pixels over the repeated edges, from wide to narrow: far away the colours
    are those of the whole image, at the edge those of the edge.
    """
    known = torch.from_numpy(~new).float()[None, None]
    colours = torch.from_numpy(canvas.transpose(2, 0, 1).copy())[None].float()
    filled = _blurred(colours, _BASE_RADIUS)
    for radius in _BLUR_RADII:
        cover = _blurred(known, radius)
        blurred = _blurred(colours * known, radius) / cover.clamp(min=1e-6)
        filled += (blurred - filled) * (cover / _OPAQUE_COVER).clamp(max=1.0)
    levels = filled.clamp(0, 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    return np.where(new[..., None], levels, canvas)


def _room(old: npt.NDArray[np.intp], size: int) -> int:
    """How far a band may reach into an original that takes these rows (or columns) of `size`."""
    num_sides = int(old[0] > 0) + int(old[-1] < size - 1)
    return size if num_sides == 0 else (len(old) - 1) // num_sides


def _kept(old: npt.NDArray[np.intp], size: int, radius: int) -> slice:
    """Those rows (or columns) that the band does not reach; it comes from grown sides only."""
    start, end = int(old[0]), int(old[-1]) + 1
    return slice(start + radius * (start > 0), end - radius * (end < size))


def _blurred(planes: torch.Tensor, radius: int) -> torch.Tensor:
    """Nearly Gaussian blur of `[1, C, H, W]` by repeated boxes; borders repeat.

    Wide ones run on fewer pixels, since they leave no detail.
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
