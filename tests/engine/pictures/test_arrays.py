import itertools

import numpy as np
import pytest

from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter
from engine.pictures.arrays import array_of, bands, pixels_of
from tests.helpers.pictures import noise


def test_pictures_come_back() -> None:
    for array in (noise(1, 1), noise(64, 65, 4), noise(7, 3)[..., 0]):
        pixels = pixels_of(array)
        assert (pixels.height, pixels.width, pixels.channels) == (*array.shape, 1)[:3]
        assert np.array_equal(array_of(pixels), array)


@pytest.mark.parametrize(("width", "height", "length"), [(0, 4, 0), (2, 2, 11), (2, 2, 13)])
def test_pixels_that_are_not_what_they_say(width: int, height: int, length: int) -> None:
    with pytest.raises(InvalidParameter) as caught:
        array_of(Pixels(width=width, height=height, channels=3, data=bytes(length)), param="mask")
    assert caught.value.param == "mask"


def test_bands_cover_all_rows_once() -> None:
    for height, width in ((1, 1), (7, 1 << 20), (4320, 7680), (100_000, 3)):
        parts = bands(height, width)
        assert parts[0].start == 0 and parts[-1].stop == height
        assert all(one.stop == other.start for one, other in itertools.pairwise(parts))
        assert all(part.start < part.stop for part in parts)
