"""The subject's own colours, and that no fringe of the old background is left on a new one."""

import numpy as np
import pytest

from engine.matting import foreground as foreground_module
from engine.matting.composition import alpha_levels, covering
from engine.matting.foreground import MARGIN, estimate_foreground
from engine.pictures.alpha import over
from tests.helpers.matting.matting_scenes import finished, rms, scene


@pytest.mark.parametrize("max_pixels", [10_000_000, 4_000])
def test_colours_are_the_subjects(max_pixels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At full size, and from a smaller picture."""
    monkeypatch.setattr(foreground_module, "MAX_PIXELS", max_pixels)
    made = scene()
    found = finished(estimate_foreground(made.image, made.alpha))
    if max_pixels < 10_000:
        assert found.width * found.height <= 1.1 * max_pixels
    mixed = (made.alpha > 0.2) & (made.alpha < 0.95)
    assert mixed.any()
    error = rms(found.colours / 255 - made.front, mixed)
    naive = rms(made.image / 255 - made.front, mixed)
    assert error < 0.05
    assert error < naive / 3


def test_opaque_pixels_keep_their_colours_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreground_module, "MAX_PIXELS", 4_000)
    made = scene()
    opaque = made.alpha == 1
    assert opaque.any()
    found = finished(estimate_foreground(made.image, made.alpha))
    assert np.array_equal(found.colours[opaque], made.image[opaque])


def test_no_fringe_over_a_new_background() -> None:
    """Red, which neither subject nor background has: what is left of blue would show."""
    made = scene()
    found = finished(estimate_foreground(made.image, made.alpha))
    levels = alpha_levels(made.alpha)
    result = over(found.colours, levels, (255, 0, 0)) / 255
    alpha = made.alpha[..., None]
    expected = alpha * made.front + (1 - alpha) * np.array([1.0, 0.0, 0.0])
    naive = alpha * (made.image / 255) + (1 - alpha) * np.array([1.0, 0.0, 0.0])
    edge = (made.alpha > 0.02) & (made.alpha < 0.98)
    assert rms(result - expected, edge) < 0.025
    assert rms(result - expected, edge) < rms(naive - expected, edge) / 3


def test_colours_end_a_little_beyond_the_subject() -> None:
    made = scene(200, 240)
    found = finished(estimate_foreground(made.image, made.alpha))
    rows, columns = np.nonzero(made.alpha > 0)
    assert not found.colours[: max(0, rows.min() - MARGIN)].any()
    assert not found.colours[:, : max(0, columns.min() - MARGIN)].any()
    near = (made.alpha == 0) & (np.roll(made.alpha, 8, axis=1) > 0.5)
    assert near.any()
    assert rms(found.colours[near] / 255 - made.front[near]) < 0.1


def test_nothing_has_no_colours() -> None:
    made = scene()
    found = finished(estimate_foreground(made.image, np.zeros_like(made.alpha)))
    assert not found.colours.any()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (2, 2)])
def test_tiny_pictures(height: int, width: int) -> None:
    image = np.full((height, width, 3), (9, 99, 200), np.uint8)
    found = finished(estimate_foreground(image, np.full((height, width), 0.5, np.float32)))
    assert found.colours.shape == image.shape
    assert np.abs(found.colours.astype(int) - image).max() <= 1


def test_alpha_of_the_picture_itself_is_kept() -> None:
    alpha = np.array([[0.0, 0.5, 1.0, 1.0]], np.float32)
    own = np.array([[255, 255, 255, 100]], np.uint8)
    assert alpha_levels(alpha, own).tolist() == [[0, 128, 255, 100]]


def test_a_background_covers_and_is_cut() -> None:
    picture = np.zeros((10, 40, 3), np.uint8)
    picture[:, 15:25] = 255
    assert covering(picture, 20, 20).min() == 255
    grey = np.full((7, 5), 9, np.uint8)
    assert covering(grey, 1, 100).shape == (1, 100, 3)
    see_through = np.zeros((4, 4, 4), np.uint8)
    assert covering(see_through, 2, 2).min() == 255
