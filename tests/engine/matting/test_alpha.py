"""Alpha against a direct solution, against scenes that were composed, and within bounds."""

import tracemalloc
from collections.abc import Generator
from typing import Any

import cv2
import numpy as np
import pytest

from engine.matting import alpha as alpha_module
from engine.matting.alpha import Matte, estimate_alpha
from engine.matting.systems import EPSILON
from engine.matting.trimap import Trimap
from engine.pictures import arrays
from engine.pictures.resizing import resized
from tests.helpers.matting.matting_scenes import finished, lemur, rms, scene
from tests.helpers.pictures import noise


def alpha_at_once(image: np.ndarray, trimap: Trimap) -> np.ndarray:
    """Alpha of the whole picture by a dense solution. Its equations come from another form of the
    method: in each window alpha is a linear function of the colours, found by ridge regression."""
    height, width = trimap.is_unknown.shape
    laplacian = np.zeros((height * width, height * width))
    ridge = np.diag([EPSILON, EPSILON, EPSILON, 0.0])
    for top, left in np.ndindex(height - 2, width - 2):
        window = np.s_[top : top + 3, left : left + 3]
        colours = np.column_stack([image[window].reshape(9, 3) / 255.0, np.ones(9)])
        explained = colours @ np.linalg.inv(colours.T @ colours + ridge) @ colours.T
        pixels = np.arange(height * width).reshape(height, width)[window].ravel()
        laplacian[np.ix_(pixels, pixels)] += np.eye(9) - explained
    unknown = np.flatnonzero(trimap.is_unknown)
    alpha = trimap.is_subject.ravel().astype(np.float64)
    rows = laplacian[unknown]
    alpha[unknown] = np.linalg.solve(rows[:, unknown], -(rows @ alpha))
    return alpha.clip(0.0, 1.0).reshape(trimap.is_unknown.shape)


def test_the_band_alone_gives_the_whole_pictures_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of few rows, so that the band crosses many."""
    monkeypatch.setattr(arrays, "BAND_PIXELS", 7 * 60)
    made = scene(48, 60, band=3)
    assert len(arrays.bands(46, 60)) > 5
    ours = finished(estimate_alpha(made.image, made.trimap))
    assert (ours.width, ours.height, ours.is_converged) == (60, 48, True)
    assert np.abs(ours.alpha - alpha_at_once(made.image, made.trimap)).max() < 1e-3


def test_composed_scenes() -> None:
    made = scene()
    found = finished(estimate_alpha(made.image, made.trimap)).alpha
    assert rms(found - made.alpha, made.trimap.is_unknown) < 0.03
    known = ~made.trimap.is_unknown
    assert np.array_equal(found[known], made.trimap.is_subject[known].astype(np.float32))


def test_pymattings_scene_within_its_error() -> None:
    """Against the alpha that PyMatting ships."""
    image, trimap, expected = lemur()
    found = finished(estimate_alpha(image, trimap)).alpha
    assert rms(found - expected, trimap.is_unknown) < 0.06


def test_a_large_picture_is_solved_small_and_follows_the_edges(monkeypatch):
    made = scene(240, 320, band=8)
    exact = finished(estimate_alpha(made.image, made.trimap)).alpha
    monkeypatch.setattr(alpha_module, "MAX_UNKNOWNS", made.trimap.num_unknown // 4)
    found = finished(estimate_alpha(made.image, made.trimap))
    assert found.width < 200
    unknown = made.trimap.is_unknown
    assert rms(found.alpha - made.alpha, unknown) < 0.06
    small = cv2.resize(exact, (found.width, found.height), interpolation=cv2.INTER_AREA)
    blurred = cv2.resize(small, (320, 240))
    # The hairs, one pixel wide, are what plain enlarging loses.
    assert rms(found.alpha - made.alpha, unknown) < rms(blurred - made.alpha, unknown)


def traced_peak(work: Generator[Any, None, Matte]) -> tuple[Matte, int]:
    """What comes of it, and the most bytes that it had at once."""
    tracemalloc.start()
    try:
        return finished(work), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_12_megapixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which 2.5 are open: a few numbers for each pixel, beside what is solved for."""
    height, width = 3000, 4000
    distance = np.hypot(np.arange(height)[:, None] - 1500, np.arange(width)[None] - 2000)
    trimap = Trimap(distance < 900, (distance >= 900) & (distance < 1280))
    assert trimap.num_unknown > 2_500_000
    image = np.empty((height, width, 3), np.uint8)
    image[...] = np.where(distance < 1090, 200, 40).astype(np.uint8)[..., None]
    monkeypatch.setattr(alpha_module, "MAX_UNKNOWNS", 20_000)
    found, peak = traced_peak(estimate_alpha(image, trimap))
    assert found.width * found.height < 12_000_000 * 20_000 / trimap.num_unknown * 1.05
    assert peak < 300 << 20
    assert found.alpha.shape == (height, width)
    assert found.alpha[1500, 2000] == 1 and found.alpha[0, 0] == 0


def test_memory_of_what_is_solved_for() -> None:
    """Goes by the open pixels: a picture six times as large around the same band takes no more."""
    made = scene(240, 320, band=8)
    image = np.pad(made.image, [(200, 200), (240, 240), (0, 0)], mode="edge")
    trimap = Trimap(
        np.pad(made.trimap.is_subject, [(200, 200), (240, 240)]),
        np.pad(made.trimap.is_unknown, [(200, 200), (240, 240)]),
    )
    small, peak = traced_peak(estimate_alpha(made.image, made.trimap))
    large, peak_of_large = traced_peak(estimate_alpha(image, trimap))
    assert np.abs(large.alpha[200:-200, 240:-240] - small.alpha).max() < 1e-3
    strips_bytes = 1000 * arrays.BAND_PIXELS
    assert peak < strips_bytes + 4000 * trimap.num_unknown
    assert peak_of_large < strips_bytes + 4000 * trimap.num_unknown + 16 * trimap.is_unknown.size


def test_scattered_open_pixels_stay_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any pixel of a smaller picture has one of them in it, so all are open there."""
    monkeypatch.setattr(alpha_module, "MAX_UNKNOWNS", 2_000)
    made = scene(150, 200)
    unknown = np.zeros((150, 200), bool)
    unknown[::3, ::3] = True
    found = finished(estimate_alpha(made.image, Trimap((made.alpha > 0.5) & ~unknown, unknown)))
    assert found.width * found.height <= 2_000
    assert found.alpha.shape == (150, 200)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (9, 1), (2, 2), (3, 3), (2, 50)])
def test_tiny_pictures(height: int, width: int) -> None:
    image = noise(height, width)
    subject = np.zeros((height, width), bool)
    subject.flat[0] = True
    unknown = ~subject
    if unknown.size > 2:
        unknown.flat[-1] = False
    found = finished(estimate_alpha(image, Trimap(subject, unknown))).alpha
    assert np.isfinite(found).all()
    assert found.min() >= 0 and found.max() <= 1
    assert found.flat[0] == 1


def test_what_is_known_needs_no_equations() -> None:
    made = scene()
    trimap = Trimap(made.trimap.is_subject, np.zeros_like(made.trimap.is_unknown))
    found = finished(estimate_alpha(made.image, trimap))
    assert np.array_equal(found.alpha, trimap.is_subject.astype(np.float32))


def test_one_colour_leaves_alpha_open_but_finite() -> None:
    made = scene(40, 50)
    found = finished(estimate_alpha(np.full_like(made.image, 128), made.trimap))
    assert np.isfinite(found.alpha).all()


def test_a_smaller_trimap_knows_only_what_all_its_pixels_know() -> None:
    made = scene(96, 128)
    small = made.trimap.scaled(31, 41)
    large = {
        name: resized(getattr(small, name).astype(np.uint8), 96, 128, cv2.INTER_NEAREST_EXACT) > 0
        for name in ("is_subject", "is_unknown")
    }
    background = ~large["is_subject"] & ~large["is_unknown"]
    assert not (large["is_subject"] & ~made.trimap.is_subject).any()
    assert not (background & (made.trimap.is_subject | made.trimap.is_unknown)).any()
