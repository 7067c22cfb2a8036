"""Alpha: laying pictures over a background, and multiplying by alpha before taking means."""

import numpy as np

from engine.pictures.arrays import Bytes, Floats, bands


def over(colours: Bytes, alpha: Bytes, background: Bytes | tuple[int, int, int]) -> Bytes:
    """Colours `[H, W, 3]` with alpha `[H, W]` over a picture or a colour, rounded to the nearest
    level."""
    result = np.empty_like(colours)
    for rows in bands(*alpha.shape):
        share = alpha[rows][..., None].astype(np.uint16)
        behind = background[rows] if isinstance(background, np.ndarray) else background
        mixed = colours[rows] * share + np.asarray(behind, np.uint16) * (255 - share)
        result[rows] = (mixed + 127) // 255
    return result


def flatten(picture: Bytes) -> Bytes:
    """A picture as RGB `[H, W, 3]`, over white if it has alpha.

    Colours under full transparency are undefined in most files, so a model must not see them.
    """
    if picture.ndim == 2:
        return np.dstack([picture] * 3)
    if picture.shape[2] == 3:
        return picture
    return over(picture[..., :3], picture[..., 3], (255, 255, 255))


def premultiplied(picture: Bytes) -> Floats:
    """The levels of `[H, W, C]` as numbers; the colours of RGBA are multiplied by alpha, so that
    invisible colours do not count."""
    planes = picture.astype(np.float32)
    if picture.shape[2] == 4:
        planes[..., :3] *= planes[..., 3:] / 255
    return planes


def straight(planes: Floats, invisible: Bytes) -> Bytes:
    """The picture of premultiplied numbers, rounded and clipped: the inverse of `premultiplied`.

    Args:
        invisible: a picture of the same shape with the colours of fully transparent pixels.
    """
    levels = np.clip(planes, 0, 255)
    if levels.shape[2] == 4:
        alpha = levels[..., 3:]
        is_visible = alpha >= 0.5
        colours = levels[..., :3] * (255 / np.where(is_visible, alpha, 1))
        levels[..., :3] = np.where(is_visible, np.minimum(colours, 255), invisible[..., :3])
    return np.rint(levels, out=levels).astype(np.uint8)
