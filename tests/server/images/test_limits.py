"""Sizes and budgets as pure functions."""

import random

import pytest

from engine.contract.draw import PARAMS, ImageTask
from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter
from server.images.limits import (
    check_budget,
    drawing_size,
    edited_size,
    parse_size,
    worked_pixels,
)
from tests.helpers.server.fake_images import image_info

INFO = image_info()


def pixels(width: int, height: int) -> Pixels:
    return Pixels(width=width, height=height, channels=3, data=b"")


def test_sizes() -> None:
    assert parse_size("512x256") == (512, 256)
    assert parse_size("512X256") == (512, 256)
    assert parse_size("auto") is parse_size(None) is None
    for text in ("", "x", "1x", "1 x 1", "+1x1", "1x1\n", "٣x٣", "1e2x5", "1234567x8"):
        with pytest.raises(InvalidParameter):
            parse_size(text)


def test_an_off_grid_size_comes_with_a_near_one() -> None:
    with pytest.raises(InvalidParameter, match="such as 64x96"):
        drawing_size((70, 103), INFO)


def test_every_refused_size_comes_with_one_that_is_taken() -> None:
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(500):
        asked = rng.choice((0, 1, 7, 40, 999_999)), rng.randrange(0, 3000)
        message = f"seed {seed}: {asked}"
        try:
            assert drawing_size(asked, INFO) == asked
        except InvalidParameter as error:
            near = parse_size(error.message.rpartition(" ")[2])
            assert drawing_size(near, INFO) == near, message


def test_scaled_sizes_keep_to_the_model() -> None:
    """Any image that is not too extreme finds a size with nearly its aspect ratio."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    for _ in range(500):
        width, height = rng.randrange(1, 5000), rng.randrange(1, 5000)
        message = f"seed {seed}: {width}x{height}"
        ratio = width / height
        if not 1 / 4 <= ratio <= 4:
            continue
        got = edited_size(None, pixels(width, height), INFO)
        assert worked_pixels(*got, INFO) <= INFO.max_pixels, message
        assert min(got) >= INFO.min_side, message
        assert abs(got[0] - got[1] * ratio) <= 8 * (1 + ratio), message


def test_a_fitting_image_keeps_its_size() -> None:
    for size in ((33, 47), (64, 64), (127, 126)):
        assert edited_size(None, pixels(*size), INFO) == size


def test_padding_counts() -> None:
    """121x129 has fewer pixels than the limit, but 128x136 on the grid has more."""
    assert 121 * 129 < INFO.max_pixels < 128 * 136
    with pytest.raises(InvalidParameter, match="17408"):
        edited_size((121, 129), pixels(64, 64), INFO)
    assert edited_size(None, pixels(121, 129), INFO) != (121, 129)


@pytest.mark.parametrize(
    ("task", "strength", "steps", "expected"),
    [
        (ImageTask.TEXT_TO_IMAGE, None, 10, 10),
        (ImageTask.EDIT, None, 10, 10),
        (ImageTask.IMAGE_TO_IMAGE, 0.5, 10, 5),
        (ImageTask.IMAGE_TO_IMAGE, 0.55, 10, 5),
        (ImageTask.INPAINT, 1.0, 10, 10),
        (ImageTask.INPAINT, 0.05, 10, 0),
    ],
)
def test_steps_that_are_run(
    task: ImageTask, strength: float | None, steps: int, expected: int
) -> None:
    own = {} if strength is None else {"strength": strength}
    params = PARAMS[task](width=8, height=8, num_inference_steps=steps, seed=0, **own)
    assert params.num_steps == expected


def test_the_budget() -> None:
    check_budget([(1_000_000, 10)], 10, 100.0)
    with pytest.raises(InvalidParameter, match=r"are 110\.0 megapixel-steps.* limit is 100 "):
        check_budget([(1_000_000, 11)], 10, 100.0)
