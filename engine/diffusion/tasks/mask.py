"""Masks, whose levels from 0 to 255 say what is redrawn, and the weights for pasting it back."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter
from engine.pictures.arrays import Bools, Bytes, Floats, array_of

_HALF = 128


def mask_levels(mask: Pixels, image: Pixels, *, soft: bool) -> Bytes:
    """The levels `[H, W]` of a mask: 0 keeps, 255 redraws; others only in soft masks.

    Raises:
        InvalidParameter: the mask has another size than the image, or more than one channel.
    """
    if (mask.width, mask.height) != (image.width, image.height):
        raise InvalidParameter(
            f"mask is {mask.width}x{mask.height} px and the image {image.width}x{image.height}; "
            "they must have the same size",
            param="mask",
        )
    if mask.channels != 1:
        raise InvalidParameter(f"mask has {mask.channels} channels; it must have 1", param="mask")
    levels = array_of(mask, param="mask")
    if not soft:
        levels = np.where(levels >= _HALF, 255, 0).astype(np.uint8)
    return levels


def latent_mask(mask: torch.Tensor, vae_factor: int) -> torch.Tensor:
    """Reduce a mask from `[1, 1, H, W]` to `[1, 1, H/f, W/f]`: a cell takes its pixels' largest
    value."""
    return F.max_pool2d(mask, vae_factor)


def paste_weights(redrawn: Bools, feather: int) -> Bytes:
    """Weights `[H, W]` of the new picture: 0 outside `redrawn`, 255 from `feather` px inside it.

    Between the two it is a half cosine of the Euclidean distance to the nearest kept pixel. If the
    mask is thinner than twice the feather, the cosine is compressed so that the middle still gets
    full weight; otherwise thin strokes would hardly change anything. The image's border is not an
    edge.
    """
    weights = np.where(redrawn, 255, 0).astype(np.uint8)
    if feather == 0 or redrawn.all() or not redrawn.any():
        return weights
    width = feather + 1
    window = _grown_box(redrawn, width)
    distance = _distance_inside(redrawn[window], width)
    thickness = _largest_nearby(distance, width)
    share = distance / np.maximum(thickness, 1.0)
    weights[window] = np.rint(255 * (0.5 - 0.5 * np.cos(np.pi * share))).astype(np.uint8)
    return weights


def bounding_box(mask: Bools) -> tuple[int, int, int, int]:
    """The (left, top, right, bottom) of the set pixels; right and bottom are exclusive."""
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _grown_box(mask: Bools, margin: int) -> tuple[slice, slice]:
    left, top, right, bottom = bounding_box(mask)
    return (
        slice(max(0, top - margin), bottom + margin),
        slice(max(0, left - margin), right + margin),
    )


def _distance_inside(mask: Bools, limit: int) -> Floats:
    """The distance of every set pixel to the nearest unset one, at most `limit`; 0 for unset
    pixels.

    It is exact and takes two passes (Felzenszwalb and Huttenlocher 2012, with a window of `limit`).
    """
    vertical = _distance_in_columns(mask, limit)
    squared = vertical**2
    nearest = squared.copy()
    for shift in range(1, min(limit, mask.shape[1])):
        np.minimum(nearest[:, shift:], squared[:, :-shift] + shift**2, out=nearest[:, shift:])
        np.minimum(nearest[:, :-shift], squared[:, shift:] + shift**2, out=nearest[:, :-shift])
    return np.minimum(np.sqrt(nearest.astype(np.float32)), np.float32(limit))


def _distance_in_columns(mask: Bools, limit: int) -> npt.NDArray[np.int32]:
    height = mask.shape[0]
    rows = np.arange(height, dtype=np.int32)[:, None]
    above = np.maximum.accumulate(np.where(mask, -limit, rows), axis=0)
    flipped = np.where(mask, height + limit, rows)[::-1]
    below = np.minimum.accumulate(flipped, axis=0)[::-1]
    return np.minimum(np.minimum(rows - above, below - rows), limit).astype(np.int32)


def _largest_nearby(distance: Floats, radius: int) -> Floats:
    planes = torch.from_numpy(distance)[None, None]
    size = 2 * radius + 1
    planes = F.max_pool2d(planes, (size, 1), stride=1, padding=(radius, 0))
    planes = F.max_pool2d(planes, (1, size), stride=1, padding=(0, radius))
    nearby: Floats = planes[0, 0].numpy()
    return nearby
