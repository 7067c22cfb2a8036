"""PNG files written row by row, read by Pillow."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from server.images.png_rows import PngRows


def written(picture: np.ndarray, *, at_once: int) -> bytes:  # type: ignore[type-arg]
    height, width, channels = picture.shape
    png = PngRows(width, height, channels)
    for start in range(0, height, at_once):
        png.add(picture[start : start + at_once].tobytes())
    return png.file()


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pillow_reads_what_was_written(channels: int, mode: str) -> None:
    for _ in range(10):
        width, height = random.randrange(1, 60), random.randrange(1, 60)
        slope = np.add.outer(np.arange(height), np.arange(width))[..., None]
        noise = np.array(random.choices(range(256), k=width * height * channels))
        noise = noise.reshape(height, width, channels)
        strength = random.choice((0, 3, 255))
        picture = ((slope * np.arange(1, channels + 1) + noise * strength // 255) % 256).astype(
            np.uint8
        )
        with Image.open(io.BytesIO(written(picture, at_once=random.randrange(1, 20)))) as image:
            assert image.mode == mode
            found = np.asarray(image).reshape(picture.shape)
        assert (found == picture).all()


def test_the_file_does_not_depend_on_the_pieces_and_is_as_small_as_pillows() -> None:
    y, x = np.mgrid[0:200, 0:300]
    waves = np.stack([128 + 90 * np.sin(x / 9 + y / 31), 128 + 90 * np.cos(y / 14), x * y / 240], 2)
    picture = waves.astype(np.uint8)
    whole = written(picture, at_once=200)
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    assert len(whole) < 1.1 * len(file.getvalue())
    with Image.open(io.BytesIO(written(picture, at_once=7))) as image:
        assert (np.asarray(image) == picture).all()
