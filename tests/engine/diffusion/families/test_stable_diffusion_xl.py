"""What only Stable Diffusion XL has, against diffusers' pipeline over the same weights."""

from types import SimpleNamespace

import diffusers
import pytest
import torch

from engine.diffusion.families.family import Row
from engine.diffusion.families.stable_diffusion_xl import StableDiffusionXLFamily
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedArchitecture
from tests.helpers.diffusion.denoise_loop import Job, assert_same, draw, their_latents
from tests.helpers.diffusion.tiny_pipelines import (
    CPU,
    fresh_seed,
    from_noise,
    noise,
    parts_of,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")


@pytest.mark.parametrize("zeros", [True, False])
def test_without_a_negative_prompt(zeros: bool) -> None:
    parts, seed = parts_of(xl=True), fresh_seed()
    family = parts.family(zeros_for_empty=zeros)
    pipeline = parts.pipeline(
        diffusers.StableDiffusionXLPipeline, force_zeros_for_empty_prompt=zeros
    )
    job = Job("a boat", noise(seed), guidance=6.0)
    theirs = their_latents(pipeline, job, seed, **from_noise(job))
    assert_same(draw(family, job), theirs, (zeros, seed))
    states = family.encode_prompts([PromptText(text="")])[0]
    assert (states.states.abs().max() == 0) == (states.pooled.abs().max() == 0) == zeros


def test_clip_skip_counts_from_the_layer_before_the_last() -> None:
    parts, seed = parts_of(xl=True), fresh_seed()
    pipeline = parts.pipeline(diffusers.StableDiffusionXLPipeline)
    job = Job("a boat", noise(seed), guidance=1.0, clip_skip=1)
    theirs = their_latents(pipeline, job, seed, **from_noise(job), clip_skip=1)
    assert_same(draw(parts.family(), job), theirs, seed)


def test_rows_of_different_pictures_know_their_own_size() -> None:
    family = parts_of(xl=True).family()
    prompt = family.encode_prompts([PromptText(text="x")])[0]
    rows = [
        Row(latents=noise(1), timestep=torch.tensor(500), prompt=prompt, width=width, height=16)
        for width in (16, 64)
    ]
    both = family.denoise("unet", rows)
    assert not torch.allclose(both[0], both[1])
    alone = torch.cat([family.denoise("unet", [row]) for row in rows])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)
    assert family.device == CPU


def test_refiners_are_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="refiner"):
        index = {"requires_aesthetics_score": True}
        StableDiffusionXLFamily.options_of(SimpleNamespace(index=index))
