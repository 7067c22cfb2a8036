"""Enlarges a small picture's alpha along the edges of the large picture.

This is the guided filter (He, Sun and Tang 2013, "Guided Image Filtering") in its fast form (He and
Sun 2015): around each pixel of the small picture alpha is a linear function of the colours, and the
same function gives alpha of the large picture's pixels there.
"""

from collections.abc import Generator

import cv2
import numpy as np

from engine.matting.trimap import Trimap
from engine.pictures.arrays import Bytes, Floats, bands, unit
from engine.pictures.resizing import enlarged_rows

RADIUS = 2
"""The radius in pixels of the small picture around a pixel that share a function."""
EPSILON = 1e-5
"""The regularisation that keeps functions flat where colours hardly differ."""


def upsample(
    small: Bytes, small_alpha: Floats, image: Bytes, trimap: Trimap
) -> Generator[None, None, Floats]:
    """Alpha [H, W] of a picture [H, W, 3], given the alpha [h, w] of a reduced picture [h, w, 3].
    Pixels that the large picture's trimap decides stay as they are."""
    functions = yield from _functions(small, small_alpha)
    height, width = image.shape[:2]
    alpha = trimap.is_subject.astype(np.float32)
    for rows in bands(height, width):
        is_unknown = trimap.is_unknown[rows]
        if not is_unknown.any():
            continue
        function = enlarged_rows(functions, rows, height, width)
        values = np.einsum("hwc,hwc->hw", function[..., :3], unit(image[rows]))
        values += function[..., 3]
        alpha[rows][is_unknown] = values.clip(0.0, 1.0)[is_unknown]
        yield
    return alpha


def _functions(image: Bytes, alpha: Floats) -> Generator[None, None, Floats]:
    """Functions [h, w, 4]: three factors for colours from 0 to 1, and a constant."""
    height, width = alpha.shape
    functions = np.empty((height, width, 4), np.float32)
    halo = 2 * RADIUS
    for rows in bands(height, width):
        top, bottom = max(0, rows.start - halo), min(height, rows.stop + halo)
        found = _strip_functions(unit(image[top:bottom]), alpha[top:bottom])
        functions[rows] = found[rows.start - top : rows.stop - top]
        yield
    return functions


def _strip_functions(guide: Floats, alpha: Floats) -> Floats:
    mean, mean_alpha = _mean(guide), _mean(alpha)
    covariance = _mean(guide * alpha[..., None]) - mean * mean_alpha[..., None]
    r, g, b = (guide[..., c] for c in range(3))
    mr, mg, mb = (mean[..., c] for c in range(3))
    rr, gg, bb = (
        _mean(x * x) - m * m + np.float32(EPSILON) for x, m in ((r, mr), (g, mg), (b, mb))
    )
    rg, rb, gb = _mean(r * g) - mr * mg, _mean(r * b) - mr * mb, _mean(g * b) - mg * mb
    # The inverse of the colours' covariance matrix, by cofactors.
    c00, c01, c02 = gg * bb - gb * gb, rb * gb - rg * bb, rg * gb - rb * gg
    c11, c12, c22 = rr * bb - rb * rb, rg * rb - rr * gb, rr * gg - rg * rg
    determinant = rr * c00 + rg * c01 + rb * c02
    cr, cg, cb = (covariance[..., c] for c in range(3))
    factors = (
        np.stack(
            [
                c00 * cr + c01 * cg + c02 * cb,
                c01 * cr + c11 * cg + c12 * cb,
                c02 * cr + c12 * cg + c22 * cb,
            ],
            axis=-1,
        )
        / np.maximum(determinant, np.float32(EPSILON**3))[..., None]
    )
    constant = mean_alpha - np.einsum("hwc,hwc->hw", factors, mean)
    return np.dstack([_mean(factors), _mean(constant)])


def _mean(values: Floats) -> Floats:
    """The mean of the pixels around each pixel."""
    side = 2 * RADIUS + 1
    return np.asarray(cv2.blur(values, (side, side), borderType=cv2.BORDER_REFLECT))
