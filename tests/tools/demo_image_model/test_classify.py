"""The reader of pictures: near perfect on the generator's renders, chance on anything else."""

import random

import numpy as np
import pytest
from scipy import ndimage

from tools.demo_image_model.classify import read
from tools.demo_image_model.palette import BACKGROUNDS, COLOURS, HELD_OUT, SHAPES
from tools.demo_image_model.questions import ROUND
from tools.demo_image_model.render import render
from tools.demo_image_model.sampling import to_uint8
from tools.demo_image_model.scenes import Scene, draw_scene, relation_of, scene_rng, single_scene

NUM = 100


def draw(scenes: list[Scene], size: int) -> np.ndarray:
    return to_uint8((render(scenes, size).permute(0, 2, 3, 1).numpy() + 1) / 2)


def is_right(scene: Scene, picture: np.ndarray) -> bool:
    """Background, every object's colour, shape and size, and the place or the relation."""
    reading = read(picture)
    wanted = sorted((item.colour, item.shape, item.size) for item in scene.items)
    found = sorted((str(o.colour), str(o.shape), o.size) for o in reading.objects)
    if wanted != found or reading.background != scene.background:
        return False
    if scene.relation is None:
        return reading.objects[0].place == scene.place
    by_pair = {(o.colour, o.shape): o for o in reading.objects}
    return relation_of(*(by_pair[i.colour, i.shape] for i in scene.items)) == scene.relation


def share_right(scenes: list[Scene], pictures: np.ndarray) -> float:
    return float(np.mean([is_right(s, p) for s, p in zip(scenes, pictures, strict=True)]))


@pytest.fixture
def seed() -> int:
    return random.randrange(2**31)


@pytest.mark.each_value
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("blur", [0.0, 0.01])
def test_reads_renders(seed, size, blur):
    scenes = [draw_scene(scene_rng(seed, i)) for i in range(NUM)]
    pictures = ndimage.gaussian_filter(draw(scenes, size), (0, blur * size, blur * size, 0))
    assert share_right(scenes, pictures) >= 0.99


@pytest.mark.drawn(1)
@pytest.mark.parametrize("size", [64, 128])
def test_reads_held_out_pairs(seed, size):
    rng = scene_rng(seed, 0)
    scenes = [
        single_scene(rng, background, colour, shape)
        for colour, shape in sorted(HELD_OUT)
        for background in BACKGROUNDS
        for _ in range(4)
    ]
    assert share_right(scenes, draw(scenes, size)) >= 0.98


@pytest.mark.parametrize("size", [64, 128])
def test_only_round_circles_are_round(seed, size):
    rng = scene_rng(seed, 1)
    scenes = [single_scene(rng, "gray", "red", "circle") for _ in range(20)]
    pictures = draw(scenes, size)
    # A narrower copy of each picture on its own background: circles become ellipses.
    squashed = pictures.copy()
    squashed[:] = pictures[:, :1, :1]
    narrow = ndimage.zoom(pictures, (1, 1, 0.9, 1), order=1)
    squashed[:, :, : narrow.shape[2]] = narrow
    for true, false in zip(pictures, squashed, strict=True):
        assert read(true).objects[0].unevenness <= ROUND
        assert read(false).objects[0].unevenness > ROUND


@pytest.mark.drawn(2)
@pytest.mark.parametrize("size, smoothness", [(64, 0.0), (64, 0.02), (64, 0.06), (128, 0.02)])
def test_chance_on_noise(seed, size, smoothness):
    """A lucky guess of colour and shape answers 1 in 40 single-object questions."""
    rng = np.random.default_rng(seed)
    scenes = [
        single_scene(rng, "white", colour, shape)
        for colour, shape in zip(
            rng.choice(list(COLOURS), 100), rng.choice(SHAPES, 100), strict=True
        )
    ]
    noise = rng.standard_normal((100, size, size, 3))
    noise = ndimage.gaussian_filter(noise, (0, smoothness * size, smoothness * size, 0))
    pictures = (128 + 90 * noise / noise.std()).clip(0, 255).astype(np.uint8)
    hits = sum(
        [(o.colour, o.shape) for o in read(picture).objects]
        == [(scene.items[0].colour, scene.items[0].shape)]
        for scene, picture in zip(scenes, pictures, strict=True)
    )
    assert hits <= 8  # 2.5 by pure luck, and 3.5 standard deviations more


def test_chance_on_other_scenes(seed):
    """Pictures of other scenes do not answer: nothing is read into them."""
    scenes = [draw_scene(scene_rng(seed, i)) for i in range(NUM)]
    pictures = np.roll(draw(scenes, 64), 1, axis=0)
    assert share_right(scenes, pictures) <= 0.02


@pytest.mark.parametrize("size", [64, 128])
def test_object_of_two_colours_is_two_objects(size):
    rng = scene_rng(0, 0)
    picture = draw([single_scene(rng, "white", "red", "square")], size)[0]
    half = picture.copy()
    x = round(read(picture).objects[0].x * size)
    red = np.linalg.norm(half.astype(float) - COLOURS["red"], axis=-1) < 60
    red[:, :x] = False
    half[red] = COLOURS["blue"]
    colours = sorted(str(seen.colour) for seen in read(half).objects)
    assert colours == ["blue", "red"]


@pytest.mark.parametrize("size", [8, 64, 65])
def test_plain_picture_holds_nothing(size):
    reading = read(np.full((size, size, 3), BACKGROUNDS["brown"], dtype=np.uint8))
    assert reading.objects == () and reading.background == "brown"


def test_unknown_colours_have_no_name():
    picture = np.full((64, 64, 3), (0, 255, 0), dtype=np.uint8)
    picture[20:40, 20:40] = (255, 0, 255)
    reading = read(picture)
    assert reading.background is None
    assert [(o.shape, o.colour) for o in reading.objects] == [("square", None)]


def test_specks_are_not_objects():
    picture = np.full((64, 64, 3), BACKGROUNDS["white"], dtype=np.uint8)
    picture[10:13, 10:13] = COLOURS["red"]
    assert read(picture).objects == ()


def test_a_ring_or_an_l_has_no_shape():
    picture = np.full((64, 64, 3), BACKGROUNDS["white"], dtype=np.uint8)
    picture[10:50, 10:16] = COLOURS["red"]
    picture[44:50, 10:50] = COLOURS["red"]
    (seen,) = read(picture).objects
    assert seen.shape is None and seen.colour == "red"
