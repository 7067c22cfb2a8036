"""Sampling for the evaluation: right sizes, own seeds, batches that change nothing."""

import numpy as np
import pytest

from tools.demo_image_model import sampling
from tools.demo_image_model.grids import TILE, sheet, wrap
from tools.demo_image_model.sampling import EditSampler, Sampler, to_uint8

pytestmark = pytest.mark.filterwarnings("ignore")  # of third parties, when models load


@pytest.fixture(scope="module")
def sampler(base) -> Sampler:
    return Sampler(base, size=64)


def test_batches_change_nothing(sampler, monkeypatch):
    prompts, seeds = ["a red circle", "", "a blue star"], [5, 6, 7]
    together = sampler.draw(prompts, seeds, guidance=4.0, steps=2)
    assert together.shape == (3, 64, 64, 3) and together.dtype == np.uint8
    monkeypatch.setattr(sampling, "BATCH", 2)
    apart = sampler.draw(prompts, seeds, guidance=4.0, steps=2)
    assert np.abs(together.astype(int) - apart).max() <= 1
    other = sampler.draw(prompts, [5, 6, 8], guidance=4.0, steps=2)
    assert (other[2] != apart[2]).any() and (other[0] == apart[0]).all()


def test_negative_prompt_and_guidance_act(sampler):
    plain = sampler.draw(["a circle"], [1], guidance=4.0, steps=2)
    negative = sampler.draw(["a circle"], [1], negatives=["red"], guidance=4.0, steps=2)
    unguided = sampler.draw(["a circle"], [1], guidance=1.0, steps=2)
    assert (plain != negative).any() and (plain != unguided).any()


def test_edits_keep_the_size(base):
    sources = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    edited = EditSampler(base).draw(
        sources, ["make it blue", "remove it"], [0, 1], guidance=4.0, image_guidance=1.5, steps=2
    )
    assert edited.shape == sources.shape and edited.dtype == np.uint8


def test_uint8_rounds_and_clips():
    values = to_uint8(np.array([-0.1, 0.0, 0.499 / 255, 0.501 / 255, 1.0, 1.2]))
    assert values.tolist() == [0, 0, 0, 1, 255, 255]


def test_sheet_holds_every_picture():
    red = np.full((3, 64, 64, 3), (255, 0, 0), dtype=np.uint8)
    image = sheet([("one", red), ("two", red[:1])], ["a", "b", "c"])
    covered = (np.asarray(image) == (255, 0, 0)).all(axis=-1).sum()
    assert covered == 4 * (TILE - 2) ** 2


def test_wrap_keeps_every_word():
    text = "an extraordinarilylongwordthatfillsaline red circle left of a blue square"
    assert wrap(text).split() == text.split()
    assert wrap("") == ""
