"""Resizes images and masks."""

import numpy as np
import torch
import torch.nn.functional as F

from engine.pictures.arrays import Bytes, unit
from engine.pictures.tensors import LEAST_ALPHA, as_bytes, as_tensor, resampled, straight


def resize_image(array: Bytes, width: int, height: int) -> Bytes:
    """Resize `[H, W, C]` with antialiased bicubic resampling; equal sizes keep the bytes.

    RGBA is resampled premultiplied, so that colours under transparency do not bleed out of it.
    """
    if array.shape[:2] == (height, width):
        return array
    planes = as_tensor(array)[None] / 255
    resize = _resize_premultiplied if array.shape[2] == 4 else _bicubic
    return as_bytes(resize(planes, height, width)[0] * 255)


def lift_off_white(rgb: Bytes, alpha: Bytes) -> Bytes:
    """Make RGBA `[H, W, 4]` that looks like the picture when it is laid over white.

    Args:
        rgb: `[H, W, 3]`.
        alpha: `[h, w, 1]`, which is resampled to the picture's size.
    """
    height, width = rgb.shape[:2]
    levels = resize_image(alpha, width, height)
    share = np.maximum(unit(levels), LEAST_ALPHA)
    lifted = 255 - (255 - rgb.astype(np.float32)) / share
    colour = np.where(levels > 0, np.rint(np.clip(lifted, 0, 255)), rgb)
    return np.concatenate([colour.astype(np.uint8), levels], axis=2)


def resize_mask(mask: Bytes, width: int, height: int) -> Bytes:
    """Resize a mask `[H, W]`; each pixel takes the largest level of what it covers.

    No masked pixel is lost, however small the result; an average or the nearest pixel would lose
    thin strokes.
    """
    if mask.shape == (height, width):
        return mask
    pooled = F.adaptive_max_pool2d(as_tensor(mask), (height, width))
    return as_bytes(pooled)[..., 0]


def _resize_premultiplied(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    colour, alpha = planes[:, :3], planes[:, 3:]
    small_alpha = _bicubic(alpha, height, width)
    colours = straight(resampled(colour * alpha, height, width, "bicubic"), small_alpha)
    # Full transparency cannot be divided out, so it takes the nearest colour.
    nearest = F.interpolate(colour, size=(height, width), mode="nearest-exact")
    visible = small_alpha >= LEAST_ALPHA
    return torch.cat([torch.where(visible, colours, nearest), small_alpha], dim=1)


def _bicubic(planes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return resampled(planes, height, width, "bicubic").clamp(0, 1)
