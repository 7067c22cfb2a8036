"""Makes cut-outs and composites from alpha and the subject's colours."""

import cv2
import numpy as np

from engine.matting.arrays import Bytes, Floats, strips


def alpha_levels(alpha: Floats, own_alpha: Bytes | None = None) -> Bytes:
    """Alpha levels [H, W] from 0 to 255, nowhere above the picture's own alpha."""
    levels = np.empty(alpha.shape, np.uint8)
    for rows in strips(*alpha.shape):
        values = alpha[rows] * np.float32(255)
        if own_alpha is not None:
            values *= own_alpha[rows] / np.float32(255)
        levels[rows] = np.rint(values)
    return levels


def over(colours: Bytes, levels: Bytes, background: Bytes | tuple[int, int, int]) -> Bytes:
    """The subject [H, W, 3] over a picture or a colour, as RGB."""
    result = np.empty_like(colours)
    for rows in strips(*levels.shape):
        alpha = (levels[rows] / np.float32(255))[..., None]
        behind = background[rows] if isinstance(background, np.ndarray) else background
        behind = np.asarray(behind, np.float32)
        result[rows] = np.rint(behind + alpha * (colours[rows] - behind))
    return result


def covering(picture: Bytes, height: int, width: int) -> Bytes:
    """A picture's middle part, scaled to that size, as RGB with its own alpha over white."""
    if picture.ndim == 2:
        picture = np.dstack([picture] * 3)
    if picture.shape[2] == 4:
        picture = over(picture[..., :3], picture[..., 3], (255, 255, 255))
    scale = max(height / picture.shape[0], width / picture.shape[1])
    rows, columns = max(1, round(height / scale)), max(1, round(width / scale))
    top, left = (picture.shape[0] - rows) // 2, (picture.shape[1] - columns) // 2
    middle = np.ascontiguousarray(picture[top : top + rows, left : left + columns])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(middle, (width, height), interpolation=method))
