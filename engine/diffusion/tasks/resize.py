"""Resizes images and masks."""

import numpy as np
import torch
import torch.nn.functional as F

from engine.diffusion.tasks.pixels import Bytes

_SMALLEST_ALPHA = 0.5 / 255


def resize_image(array: Bytes, width: int, height: int) -> Bytes:
    """Resize `[H, W, C]` with antialiased bicubic resampling; equal sizes keep the bytes.

    RGBA is resampled premultiplied, so that colours under transparency do not bleed out of it.
    """
    if array.shape[:2] == (height, width):
        return array
    planes = torch.from_numpy(array.transpose(2, 0, 1).copy())[None].float() / 255
    if array.shape[2] == 4:
        resized = _resize_premultiplied(planes, (height, width))
    else:
        resized = _bicubic(planes, (height, width)).clamp(0, 1)
    levels = (resized[0] * 255).round().to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().numpy()


def lift_off_white(rgb: Bytes, alpha: Bytes) -> Bytes:
    """Make RGBA `[H, W, 4]` that looks like the picture when it is laid over white.

    Args:
        rgb: `[H, W, 3]`.
        alpha: `[h, w, 1]`, which is resampled to the picture's size.
    """
    height, width = rgb.shape[:2]
    levels = resize_image(alpha, width, height)
    share = levels.astype(np.float32) / 255
    straight = 255 - (255 - rgb.astype(np.float32)) / np.maximum(share, _SMALLEST_ALPHA)
    colour = np.where(levels > 0, np.rint(np.clip(straight, 0, 255)), rgb)
    return np.concatenate([colour.astype(np.uint8), levels], axis=2)


def resize_mask(mask: Bytes, width: int, height: int) -> Bytes:
    """Resize a mask `[H, W]`; each pixel takes the largest level of what it covers.

    So no masked pixel is lost, however small the result; an average or the nearest pixel would lose
    thin strokes.
    """
    if mask.shape == (height, width):
        return mask
    levels = torch.from_numpy(mask.copy())[None, None].float()
    pooled = F.adaptive_max_pool2d(levels, (height, width))
    return pooled[0, 0].to(torch.uint8).numpy()


def _resize_premultiplied(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    colour, alpha = planes[:, :3], planes[:, 3:]
    small_alpha = _bicubic(alpha, size).clamp(0, 1)
    premultiplied = _bicubic(colour * alpha, size)
    straight = (premultiplied / small_alpha.clamp(min=_SMALLEST_ALPHA)).clamp(0, 1)
    # Full transparency cannot be divided out, so it takes the nearest colour.
    nearest = F.interpolate(colour, size=size, mode="nearest-exact")
    visible = small_alpha >= _SMALLEST_ALPHA
    return torch.cat([torch.where(visible, straight, nearest), small_alpha], dim=1)


def _bicubic(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if size[1] == 1:
        # When torch 2 shrinks a column, it gives all its rows the first row's values.
        return _bicubic_rows(planes.mT.contiguous(), (1, size[0])).mT
    return _bicubic_rows(planes, size)


def _bicubic_rows(planes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return F.interpolate(planes, size=size, mode="bicubic", align_corners=False, antialias=True)
