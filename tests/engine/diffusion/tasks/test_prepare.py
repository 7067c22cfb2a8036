"""Prepares requests for denoising and finishes results: sizes, masks, and protected bytes."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F

from engine.contract.draw import ImageRequest, ImageTask, MaskContent, Outpaint, UpscalingFacts
from engine.contract.pixels import Pixels
from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.tasks.checks import MAX_CANVAS_PIXELS
from engine.diffusion.tasks.prepare import Preparation, prepare
from engine.diffusion.tasks.resize import resize_image
from engine.errors import InvalidParameter
from engine.pictures.arrays import array_of, pixels_of
from tests.helpers.diffusion.toy_family import ToyFamily
from tests.helpers.diffusion.toy_family import request as toy_request

SEED = random.randrange(1 << 30)
FACTS = replace(
    ToyFamily().facts,
    vae_factor=8,
    size_multiple=16,
    default_width=64,
    default_height=48,
    min_side=32,
    max_pixels=40_000,
    upscaling=None,
)
Array = npt.NDArray[np.uint8]


def rng() -> np.random.Generator:
    return np.random.default_rng(SEED)


def noise(*shape: int, random: np.random.Generator | None = None) -> Array:
    return (random or rng()).integers(0, 256, shape, dtype=np.uint8)


def request(
    image: Array | None = None,
    mask: Array | None = None,
    task: ImageTask = ImageTask.INPAINT,
    size: tuple[int, int] | None = None,
    **params: Any,
) -> ImageRequest:
    """`size` is (width, height); by default the image's, with what outpainting adds."""
    if size is None and image is not None:
        grow = params.get("outpaint") or Outpaint()
        size = (
            image.shape[1] + grow.left + grow.right,
            image.shape[0] + grow.top + grow.bottom,
        )
    width, height = size or (64, 64)
    pixels = [None if levels is None else pixels_of(levels) for levels in (image, mask)]
    return toy_request("r", "p", *pixels, task=task, width=width, height=height, **params)


def box_mask(height: int, width: int, rows: slice, columns: slice) -> Array:
    mask = np.zeros((height, width), np.uint8)
    mask[rows, columns] = 255
    return mask


def seen_by(preparation: Preparation) -> Array:
    """The input as the model sees it, in levels."""
    levels = ((preparation.image[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(1, 2, 0).contiguous().numpy()


def drawn(preparation: Preparation, random: np.random.Generator | None = None) -> Pixels:
    """What a model might have drawn, with an autoencoder that returns what it was given: what the
    mask protects has the input's colours."""
    picture = noise(preparation.height, preparation.width, 3, random=random)
    if preparation.image is not None and preparation.latent_mask is not None:
        kept = F.interpolate(preparation.latent_mask, scale_factor=FACTS.vae_factor)[0, 0] == 0
        picture = np.where(kept[..., None].numpy(), seen_by(preparation), picture)
    return pixels_of(picture)


def finished(preparation: Preparation, random: np.random.Generator | None = None) -> Array:
    return array_of(preparation.finish(drawn(preparation, random)))


def random_mask(random: np.random.Generator, height: int, width: int) -> Array:
    mask = np.zeros((height, width), np.uint8)
    for _ in range(random.integers(1, 4)):
        top, left = random.integers(height), random.integers(width)
        level = random.integers(1, 256)
        mask[top : top + random.integers(1, 40), left : left + random.integers(1, 40)] = level
    mask[random.integers(height), random.integers(width)] = 255
    return mask


def check_shapes(preparation: Preparation) -> None:
    width, height = preparation.width, preparation.height
    assert width % FACTS.size_multiple == 0 and height % FACTS.size_multiple == 0
    assert preparation.image.shape == (1, 3, height, width)
    assert preparation.image.dtype == torch.float32
    assert preparation.image.abs().max() <= 1
    if preparation.mask is not None:
        assert preparation.mask.shape == (1, 1, height, width)
        assert preparation.mask.amin() >= 0 and preparation.mask.amax() <= 1
        assert preparation.latent_mask.shape == (1, 1, height // 8, width // 8)


@pytest.mark.parametrize("joined", ["make it red and big", "Remove it, THEN add a star"])
def test_two_edits_are_refused_by_a_model_that_does_one(joined):
    facts = replace(FACTS, does_one_edit=True)
    two = replace(request(noise(64, 64, 3), task=ImageTask.EDIT), prompt=joined)
    with pytest.raises(InvalidParameter, match="one edit at a time") as refused:
        prepare(two, facts)
    assert refused.value.param == "prompt"
    prepare(two, FACTS)
    prepare(replace(two, prompt="make the sandy island red"), facts)
    redrawn = request(noise(64, 64, 3), task=ImageTask.IMAGE_TO_IMAGE)
    prepare(replace(redrawn, prompt=joined), facts)


def test_every_byte_outside_the_mask_comes_back() -> None:
    random = rng()
    for turn in range(120):
        height, width = (int(side) for side in random.integers(1, 150, 2))
        image = noise(height, width, int(random.choice([3, 4])), random=random)
        mask = random_mask(random, height, width)
        soft = bool(random.integers(2))
        preparation = prepare(
            request(
                image,
                mask,
                feather=int(random.choice([0, 1, 4, 30])),
                soft_mask=soft,
                crop_to_mask=bool(random.integers(2)),
                crop_padding=int(random.integers(0, 20)),
            ),
            FACTS,
        )
        check_shapes(preparation)
        answer = finished(preparation, random)
        kept = mask < (1 if soft else 128)
        assert answer.shape == image.shape, (SEED, turn)
        assert np.array_equal(answer[kept], image[kept]), (SEED, turn)


def test_what_is_under_the_mask_is_the_models_and_opaque() -> None:
    random = rng()
    for channels in (3, 4):
        image, mask = noise(37, 51, channels, random=random), random_mask(random, 37, 51)
        preparation = prepare(request(image, mask, feather=0), FACTS)
        picture = drawn(preparation)
        answer = array_of(preparation.finish(picture))
        marked = mask >= 128
        expected = array_of(picture)[:37, :51]
        assert np.array_equal(answer[marked][:, :3], expected[marked]), SEED
        if channels == 4:
            assert (answer[marked][:, 3] == 255).all()


def test_another_size_is_met_by_resizing_and_kept_outside_the_mask() -> None:
    random = rng()
    for _ in range(40):
        height, width = (int(side) for side in random.integers(1, 120, 2))
        size = tuple(int(side) for side in random.integers(1, 150, 2))
        image = noise(height, width, int(random.choice([3, 4])), random=random)
        mask = random_mask(random, height, width)
        crop = bool(random.integers(2))
        preparation = prepare(request(image, mask, size=size, crop_to_mask=crop), FACTS)
        check_shapes(preparation)
        answer = finished(preparation, random)
        resized = resize_image(image, *size)
        assert answer.shape == resized.shape
        far = np.ones(size[::-1], np.bool_)
        for y, x in zip(*np.nonzero(mask >= 128), strict=True):
            top, bottom = y * size[1] // height, -(-(y + 1) * size[1] // height)
            left, right = x * size[0] // width, -(-(x + 1) * size[0] // width)
            far[top:bottom, left:right] = False
        assert np.array_equal(answer[far], resized[far]), SEED


def test_an_image_off_the_grid_is_padded_by_its_edge_and_cut_back() -> None:
    image = noise(33, 50, 3)
    preparation = prepare(request(image, task=ImageTask.IMAGE_TO_IMAGE), FACTS)
    check_shapes(preparation)
    assert (preparation.width, preparation.height) == (64, 48)
    seen = seen_by(preparation)
    assert np.array_equal(seen[:33, :50], image), SEED
    assert (seen[33:, :50] == image[-1]).all() and (seen[:33, 50:] == image[:, -1:]).all()
    assert preparation.mask is None and preparation.latent_mask is None
    picture = drawn(preparation)
    assert np.array_equal(array_of(preparation.finish(picture)), array_of(picture)[:33, :50])


def test_small_images_are_padded_to_the_models_smallest_side() -> None:
    image = noise(1, 3, 4)
    preparation = prepare(request(image, task=ImageTask.EDIT), FACTS)
    assert (preparation.width, preparation.height) == (32, 32)
    assert finished(preparation).shape == (1, 3, 3)


def test_reference_images_do_not_decide_the_size_of_the_result() -> None:
    limits = ReferenceFacts(max_images=2, size_multiple=16, max_pixels=40 * 40)
    facts = replace(FACTS, references=limits)
    asked = request(noise(70, 40, 3), task=ImageTask.EDIT, size=(50, 33))
    asked.images.append(pixels_of(noise(20, 36, 4)))
    preparation = prepare(asked, facts)
    assert preparation.image is None
    # 70x40 is reduced to 1600 pixels; the grid cuts both.
    assert [image.shape[2:] for image in preparation.references] == [(48, 16), (16, 32)]
    assert (preparation.width, preparation.height) == (64, 48)
    assert finished(preparation).shape == (33, 50, 3)
    asked.images.append(asked.images[0])
    with pytest.raises(InvalidParameter, match="3 input images; this model takes 1 to 2"):
        prepare(asked, facts)
    grey = replace(asked, images=[pixels_of(noise(40, 40))])
    with pytest.raises(InvalidParameter, match="1 channels; it must be RGB or RGBA"):
        prepare(grey, facts)


def test_without_a_mask_the_answer_is_rgb_of_the_size_asked_for() -> None:
    image = noise(40, 20, 4)
    preparation = prepare(request(image, task=ImageTask.IMAGE_TO_IMAGE, size=(70, 45)), FACTS)
    check_shapes(preparation)
    assert finished(preparation).shape == (45, 70, 3)


@pytest.mark.parametrize("per_pixel", [1, 8])
@pytest.mark.parametrize(
    ("task", "params"),
    [
        (ImageTask.TEXT_TO_IMAGE, {}),
        (ImageTask.IMAGE_TO_IMAGE, {}),
        (ImageTask.INPAINT, {}),
        (ImageTask.INPAINT, {"crop_to_mask": True, "crop_padding": 4}),
        (ImageTask.INPAINT, {"outpaint": Outpaint(left=5, top=9)}),
    ],
)
def test_a_preview_is_the_answer_so_far(task, params, per_pixel):
    """A preview has the answer's size, and the input's bytes around a mask."""
    image, mask = noise(50, 70, 3), box_mask(50, 70, slice(20, 30), slice(11, 40))
    if task is ImageTask.TEXT_TO_IMAGE:
        preparation = prepare(request(task=task, size=(64, 48), **params), FACTS)
    else:
        marked = mask if task is ImageTask.INPAINT else None
        preparation = prepare(request(image, marked, task, **params), FACTS)
    height, width = preparation.height // per_pixel, preparation.width // per_pixel
    preview = array_of(preparation.show(pixels_of(noise(height, width, 3))))
    finished = array_of(preparation.finish(drawn(preparation)))
    assert preview.shape == finished.shape
    if task is ImageTask.INPAINT:
        kept = preview[-50:, -70:][mask == 0]
        assert np.array_equal(kept, image[mask == 0])


def test_hard_masks_are_ones_and_zeros_and_soft_ones_keep_their_levels() -> None:
    image, mask = noise(48, 64, 3), noise(48, 64)
    hard = prepare(request(image, mask), FACTS).mask
    soft = prepare(request(image, mask, soft_mask=True), FACTS).mask
    assert np.array_equal(hard[0, 0].numpy(), (mask >= 128).astype(np.float32)), SEED
    assert np.array_equal((soft[0, 0] * 255).round().numpy(), mask), SEED


def test_the_thinnest_mask_reaches_the_latents() -> None:
    mask = box_mask(48, 64, slice(17, 18), slice(42, 43))
    latent = prepare(request(noise(48, 64, 3), mask), FACTS).latent_mask
    assert latent.sum() == 1 and latent[0, 0, 17 // 8, 42 // 8] == 1


def test_a_crop_is_drawn_at_the_models_size_and_only_there_pasted() -> None:
    image, mask = noise(500, 700, 3), box_mask(500, 700, slice(300, 310), slice(400, 412))
    preparation = prepare(request(image, mask, crop_to_mask=True, crop_padding=10), FACTS)
    assert (preparation.width, preparation.height) == (64, 48)
    assert 0.05 < preparation.mask.mean() < 0.6
    picture = array_of(drawn(preparation)).copy()
    picture[preparation.mask[0, 0].numpy() > 0] = (255, 0, 0)
    answer = array_of(preparation.finish(pixels_of(picture)))
    assert np.abs(answer[304:306, 404:408].astype(int) - (255, 0, 0)).max() < 40
    assert np.array_equal(answer[mask == 0], image[mask == 0])


def test_a_crop_puts_things_back_where_they_were() -> None:
    y, x = np.mgrid[0:200, 0:300]
    image = np.stack([x * 255 // 300, y * 255 // 200, (x + y) // 2], axis=-1).astype(np.uint8)
    mask = box_mask(200, 300, slice(120, 170), slice(30, 90))
    preparation = prepare(request(image, mask, crop_to_mask=True), FACTS)
    answer = array_of(preparation.finish(pixels_of(seen_by(preparation))))
    assert np.abs(answer.astype(int) - image).max() <= 3


@pytest.mark.parametrize("crop", [False, True])
def test_what_is_under_the_mask_may_be_the_colours_around_it(crop: bool) -> None:
    image = np.full((64, 64, 3), (10, 200, 90), np.uint8)
    image[24:40, 24:40] = (250, 0, 0)
    mask = box_mask(64, 64, slice(24, 40), slice(24, 40))
    asked = {"crop_to_mask": crop, "crop_padding": 16}
    kept = prepare(request(image, mask, **asked), FACTS)
    filled = prepare(request(image, mask, mask_content=MaskContent.FILL, **asked), FACTS)
    green = torch.tensor((10, 200, 90)).view(1, 3, 1, 1) / 127.5 - 1
    assert (filled.image - green).abs().max() <= 1.5 / 127.5 + 1e-6
    assert (kept.image - green).abs().max() > 1
    assert np.array_equal(finished(filled)[:24], image[:24])


def test_outpainting_keeps_every_byte_of_the_original() -> None:
    random = rng()
    for turn in range(60):
        height, width = (int(side) for side in random.integers(1, 90, 2))
        sides = [int(n) for n in random.integers(0, 60, 4) * random.integers(0, 2, 4)]
        if not any(sides):
            sides[0] = 5
        left, right, top, bottom = sides
        outpaint = Outpaint(left=left, right=right, top=top, bottom=bottom)
        feather = random.choice([None, 0, 1, 4, 16, 40])
        options = {} if feather is None else {"feather": int(feather)}
        image = noise(height, width, int(random.choice([3, 4])), random=random)
        facts = replace(FACTS, max_pixels=1 << 20)
        preparation = prepare(request(image, outpaint=outpaint, **options), facts)
        check_shapes(preparation)
        picture = drawn(preparation, random)
        answer = array_of(preparation.finish(picture))
        assert answer.shape == (height + top + bottom, width + left + right, image.shape[2])
        inside = answer[top : top + height, left : left + width]
        assert np.array_equal(inside, image), (SEED, turn, feather)
        new = np.ones(answer.shape[:2], np.bool_)
        new[top : top + height, left : left + width] = False
        marked = preparation.mask[0, 0, : new.shape[0], : new.shape[1]].numpy() > 0
        assert np.array_equal(marked, new), (SEED, turn)
        if feather == 0:
            expected = array_of(picture)[: new.shape[0], : new.shape[1]]
            assert np.array_equal(answer[new][:, :3], expected[new]), (SEED, turn)
            assert image.shape[2] == 3 or (answer[new][:, 3] == 255).all()


def test_the_feather_of_outpainting_softens_new_pixels_only() -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[..., 3] = 255
    preparation = prepare(request(image, outpaint=Outpaint(right=32), feather=12), FACTS)
    picture = array_of(drawn(preparation)).copy()
    picture[:, 64:] = 255
    answer = array_of(preparation.finish(pixels_of(picture))).astype(int)
    assert (answer == answer[:1]).all()
    row = answer[0, :, 0]
    assert (row[:64] == 0).all() and (row[76:] == 255).all()
    assert (np.diff(row[63:77]) > 0).all(), "from the repeated edge to what was drawn"
    assert (answer[..., 3] == 255).all(), "an opaque picture has no transparent seam"


@pytest.mark.parametrize("crop", [False, True])
def test_a_tint_of_the_autoencoder_is_taken_back_under_the_mask(crop: bool) -> None:
    image = np.full((96, 128, 3), (140, 170, 60), np.uint8)
    mask = box_mask(96, 128, slice(35, 61), slice(41, 90))
    preparation = prepare(request(image, mask, crop_to_mask=crop, crop_padding=24), FACTS)
    tinted = (seen_by(preparation) + np.array((-12, 9, 20))).astype(np.uint8)
    answer = array_of(preparation.finish(pixels_of(tinted))).astype(int)
    assert np.abs(answer - image).max() <= 1


def test_a_mask_and_outpainting_add_up() -> None:
    image, mask = noise(32, 32, 3), box_mask(32, 32, slice(10, 20), slice(5, 9))
    sides = Outpaint(left=16, top=16)
    preparation = prepare(request(image, mask, outpaint=sides, feather=0), FACTS)
    expected = np.ones((48, 48), np.float32)
    expected[16:, 16:] = mask / 255
    assert np.array_equal(preparation.mask[0, 0].numpy(), expected)
    empty = prepare(request(image, mask * 0, outpaint=sides, feather=0), FACTS)
    alone = prepare(request(image, outpaint=sides, feather=0), FACTS)
    assert torch.equal(empty.mask, alone.mask)


def test_outpainting_with_a_crop_or_another_size() -> None:
    image, sides = noise(40, 60, 4), Outpaint(right=200, top=3)
    for extra in ({"crop_to_mask": True}, {"size": (130, 47)}):
        answer = finished(prepare(request(image, outpaint=sides, **extra), FACTS))
        assert answer.shape == ((43, 260, 4) if "size" not in extra else (47, 130, 4))
        assert (answer[:, -1, 3] == 255).all()


def test_transparent_input_is_seen_on_white() -> None:
    image = np.zeros((48, 64, 4), np.uint8)
    preparation = prepare(request(image, task=ImageTask.IMAGE_TO_IMAGE), FACTS)
    assert (preparation.image == 1).all()


def test_hidden_colours_do_not_enter_the_fill() -> None:
    image = np.full((48, 32, 4), (255, 0, 255, 0), np.uint8)
    image[:, 16:] = (0, 80, 0, 255)
    for crop in (False, True):
        sides = Outpaint(left=16, right=16)
        preparation = prepare(request(image, outpaint=sides, crop_to_mask=crop), FACTS)
        seen = (preparation.image[0, :, :48, :64] + 1) * 127.5
        assert (seen[:, :, 17:30] > 254).all(), "transparency is white to the model"
        assert (seen[1] > 79).all() and ((seen[0] - seen[2]).abs() < 1).all()
        assert (seen[:, :, 49:] < 130).any()


def test_text_to_image_only_checks_the_size() -> None:
    preparation = prepare(request(task=ImageTask.TEXT_TO_IMAGE, size=(64, 32)), FACTS)
    assert (preparation.width, preparation.height) == (64, 32)
    assert preparation.image is None and preparation.mask is None
    picture = drawn(preparation)
    assert preparation.finish(picture) == picture


IMAGE = noise(48, 64, 3)
EMPTY = np.zeros((48, 64), np.uint8)
FULL = EMPTY + 255
T2I, I2I = ImageTask.TEXT_TO_IMAGE, ImageTask.IMAGE_TO_IMAGE


@pytest.mark.parametrize(
    ("bad", "param", "word"),
    [
        (request(task=T2I, size=(64, 40)), "size", "multiples of 16"),
        (request(task=T2I, size=(0, 64)), "size", "multiple"),
        (request(task=T2I, size=(6400, 6400)), "size", "40000"),
        (request(task=I2I), "image", "0 input images"),
        (request(IMAGE, EMPTY), "mask", "empty"),
        (request(IMAGE, EMPTY, soft_mask=True), "mask", "empty"),
        (request(IMAGE, EMPTY + 127), "mask", "soft_mask"),
        (request(IMAGE, FULL[:47]), "mask", "64x47"),
        (request(IMAGE, FULL[:, :63]), "mask", "64x48"),
        (request(IMAGE), "mask", "mask or outpaint"),
        (request(IMAGE, task=I2I, size=(400, 400)), "size", "160000"),
        (request(IMAGE, FULL, size=(64, 0)), "size", "at least 1"),
        (request(IMAGE, FULL, size=(10**6, 10**6)), "size", str(MAX_CANVAS_PIXELS)),
        (request(IMAGE, FULL, feather=-1), "feather", "0 to"),
        (request(IMAGE, FULL, feather=10**6), "feather", "0 to"),
        (request(IMAGE, FULL, crop_padding=-1), "crop_padding", "negative"),
        (request(IMAGE, outpaint=Outpaint()), "outpaint", "above 0"),
        (request(IMAGE, outpaint=Outpaint(left=-4, right=9)), "outpaint", "0 or more"),
        (request(IMAGE, outpaint=Outpaint(left=10**9), size=(64, 64)), "outpaint", "canvas"),
        (request(noise(48, 64, 1), FULL), "image", "1 channels"),
        (request(noise(0, 64, 3), size=(64, 64), task=I2I), "image", "no pixels"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_limit(bad, param, word):
    with pytest.raises(InvalidParameter) as caught:
        prepare(bad, FACTS)
    assert caught.value.param == param
    assert word in caught.value.message


def test_two_images_are_refused() -> None:
    bad = replace(request(IMAGE, task=I2I), images=[pixels_of(IMAGE)] * 2)
    with pytest.raises(InvalidParameter, match="2 input images"):
        prepare(bad, FACTS)


def test_images_of_a_request_can_be_finished_more_than_once() -> None:
    preparation = prepare(request(IMAGE, FULL), FACTS)
    picture = drawn(preparation)
    first, other = preparation.finish(picture), drawn(preparation, np.random.default_rng(1))
    preparation.finish(other)
    assert preparation.finish(picture) == first


UPSCALER = replace(
    FACTS,
    vae_factor=4,
    size_multiple=4,
    upscaling=UpscalingFacts(scale=4, default_noise_level=20, max_noise_level=50),
)


@pytest.mark.parametrize(("height", "width"), [(20, 30), (9, 8), (7, 3), (1, 1)])
@pytest.mark.parametrize("channels", [3, 4])
def test_upscaling_sees_the_image_and_answers_in_any_size(height, width, channels):
    image = noise(height, width, channels)
    if channels == 4:
        image[..., 3] = 255
    for size in ((4 * width, 4 * height), (3 * width + 1, 2 * height)):
        preparation = prepare(request(image, task=ImageTask.UPSCALE, size=size), UPSCALER)
        tall, wide = max(height, 8), max(width, 8)
        assert (preparation.width, preparation.height) == (4 * wide, 4 * tall)
        assert preparation.image.shape == (1, 3, tall, wide)
        assert (seen_by(preparation)[:height, :width] == image[..., :3]).all()
        picture = noise(4 * tall, 4 * wide, 3)
        answer = array_of(preparation.finish(pixels_of(picture)))
        expected = resize_image(picture[: 4 * height, : 4 * width], *size)
        # Premultiplied colours may round the other way.
        assert np.abs(answer[..., :3].astype(int) - expected).max() <= (channels == 4)
        assert answer.shape == (size[1], size[0], channels)


def test_upscaling_keeps_transparency() -> None:
    image = np.zeros((10, 10, 4), np.uint8)
    image[:, :5] = (200, 40, 90, 255)
    preparation = prepare(request(image, task=ImageTask.UPSCALE, size=(40, 40)), UPSCALER)
    assert preparation.image[..., 5:].min() == 1, "seen on white"
    on_white = np.full((40, 40, 3), 255, np.uint8)
    on_white[:, :20] = (200, 40, 90)
    answer = array_of(preparation.finish(pixels_of(on_white)))
    assert (answer[:, :14] == (200, 40, 90, 255)).all()
    assert not answer[:, 26:, 3].any()


def test_upscaling_refuses_what_the_model_cannot_do() -> None:
    image = noise(20, 20, 3)
    for level in (-1, 51):
        with pytest.raises(InvalidParameter, match="takes 0 to 50"):
            prepare(request(image, task=ImageTask.UPSCALE, noise_level=level), UPSCALER)
    with pytest.raises(InvalidParameter, match="at most 40000"):
        prepare(request(noise(60, 60, 3), task=ImageTask.UPSCALE), UPSCALER)
    with pytest.raises(InvalidParameter, match="noise_level"):
        prepare(request(image, task=ImageTask.UPSCALE), replace(UPSCALER, upscaling=None))
