import numpy as np
from PIL import Image

from engine.pictures.alpha import flatten, over, premultiplied, straight
from tests.helpers.pictures import noise


def test_pillow_lays_over_in_the_same_way() -> None:
    colours, alpha, background = noise(300, 500), noise(300, 500, 1)[..., 0], noise(300, 500)
    theirs = Image.fromarray(background)
    theirs.paste(Image.fromarray(colours), mask=Image.fromarray(alpha))
    assert np.array_equal(over(colours, alpha, background), np.asarray(theirs))
    green = np.broadcast_to(np.array((0, 255, 7), np.uint8), colours.shape)
    assert np.array_equal(over(colours, alpha, (0, 255, 7)), over(colours, alpha, green))


def test_transparency_is_seen_on_white() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 128]]], np.uint8)
    assert flatten(rgba).tolist() == [[[10, 20, 30], [255, 255, 255], [127, 127, 127]]]
    assert flatten(np.array([[9]], np.uint8)).tolist() == [[[9, 9, 9]]]


def test_pictures_come_back() -> None:
    for channels in (3, 4):
        picture = noise(40, 30, channels)
        again = straight(premultiplied(picture), picture)
        assert again.tolist() == picture.tolist()


def test_what_is_invisible_has_no_numbers_and_keeps_its_colour() -> None:
    picture = noise(8, 8, 4)
    picture[..., 3] = 0
    assert not premultiplied(picture).any()
    assert straight(premultiplied(picture), picture).tolist() == picture.tolist()


def test_levels_are_rounded_and_clipped() -> None:
    planes = np.array([[[-5.0, 12.6, 300.0]]], np.float32)
    assert straight(planes, planes.astype(np.uint8)).tolist() == [[[0, 13, 255]]]
    bright = np.array([[[200.0, 80.0, 0.0, 100.0]]], np.float32)
    assert straight(bright, np.zeros((1, 1, 4), np.uint8)).tolist() == [[[255, 204, 0, 100]]]
