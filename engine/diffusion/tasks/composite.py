"""Puts the drawn picture back into the input, byte by byte."""

import numpy as np

from engine.pictures.alpha import over
from engine.pictures.arrays import Bytes


def composite(base: Bytes, picture: Bytes, weights: Bytes) -> Bytes:
    """Lay `picture` over `base`; weight 0 leaves a byte as it is, weight 255 takes the picture's.

    An RGBA base keeps its alpha where the weight is 0. The drawn part is opaque: alpha rises to 255
    with the weight, and colours are mixed premultiplied, so that colours hidden by transparency do
    not show in the feathered edge.

    Args:
        base: `[H, W, 3 or 4]`.
        picture: `[H, W, 3]`.
        weights: `[H, W]`, 255 for only the picture.
    """
    if base.shape[2] == 3:
        return over(picture, weights, base)
    result = base.copy()
    touched = weights > 0
    weight = weights[touched].astype(np.int32)[:, None]
    rest = 255 - weight
    old, new = base[touched].astype(np.int32), picture[touched].astype(np.int32)
    cover = 255 * weight + old[:, 3:] * rest
    colour = (new * 255 * weight + old[:, :3] * old[:, 3:] * rest + cover // 2) // cover
    result[touched] = np.concatenate([colour, (cover + 127) // 255], axis=1)
    return result
