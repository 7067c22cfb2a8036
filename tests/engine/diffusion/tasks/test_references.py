"""Reference images have the sizes and pixels that diffusers' pipelines give them."""

import random

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from PIL import Image

from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.families.flux import KONTEXT_SIZES
from engine.diffusion.tasks.references import reference_tensor
from engine.errors import InvalidParameter
from engine.pictures.arrays import array_of
from tests.helpers.diffusion.toy_family import picture

KONTEXT = ReferenceFacts(max_images=1, size_multiple=16, sizes=KONTEXT_SIZES)
FREE = ReferenceFacts(max_images=4, size_multiple=16, max_pixels=90_000, min_side=64, max_ratio=8)


def random_side() -> int:
    return random.randrange(64, 500)


def test_kontexts_sizes() -> None:
    assert list(KONTEXT_SIZES) == PREFERRED_KONTEXT_RESOLUTIONS
    image = picture(random_side(), random_side(), random.randrange(1000))
    shape = image.width / image.height
    _, width, height = min((abs(shape - w / h), w, h) for w, h in KONTEXT_SIZES)
    assert KONTEXT.size_of(image.width, image.height) == (width, height)
    processor = VaeImageProcessor(vae_scale_factor=16)
    resized = processor.resize(Image.fromarray(array_of(image)), height, width)
    expected = processor.preprocess(resized, height, width)
    assert torch.allclose(reference_tensor(image, KONTEXT), expected, atol=1e-6)


def test_an_image_of_the_right_size_keeps_its_bytes() -> None:
    width, height = random.choice(KONTEXT_SIZES)
    image = picture(width, height)
    kept = (reference_tensor(image, KONTEXT) + 1) * 127.5
    assert np.array_equal(kept[0].permute(1, 2, 0).round().numpy(), array_of(image))


@pytest.mark.parametrize("size", [(63, 100), (100, 63), (64, 513), (700, 80)])
def test_images_that_are_too_small_or_too_long_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidParameter, match=f"{size[0]}x{size[1]} pixels; this model needs"):
        FREE.size_of(*size)


def test_sizes_stay_within_the_limits() -> None:
    for _ in range(200):
        width, height = random_side(), random_side()
        if max(width, height) > 8 * min(width, height):
            continue
        seen = FREE.size_of(width, height)
        assert seen[0] % 16 == seen[1] % 16 == 0
        assert seen[0] * seen[1] <= FREE.max_pixels
        if width * height <= FREE.max_pixels:
            assert seen == (width // 16 * 16, height // 16 * 16)
