"""SD3 against diffusers' pipelines, on tiny random components."""

import random
import warnings
from typing import Any

import pytest
import torch
from diffusers import FlowMatchHeunDiscreteScheduler, StableDiffusion3Img2ImgPipeline

from engine.contract.draw import GuidanceKind, ImageTask
from engine.diffusion.noise_schedule import FLOW_SCHEDULES
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter, UnsupportedArchitecture
from tests.helpers.diffusion.denoise_loop import Job, draw, redrawing, settings_of
from tests.helpers.diffusion.tiny_families import family_of
from tests.helpers.diffusion.tiny_transformers import (
    CHANNELS,
    FACTOR,
    Sd3Parts,
    assert_drawn,
    draw_with,
    noise,
    pipeline_of,
    sd3_parts,
)

WIDTH, HEIGHT, SCALE = 48, 32, 4.0
SIZE = {"width": WIDTH, "height": HEIGHT}


def oracle(parts: Sd3Parts, name: str, kind: Any = None) -> Any:
    scheduler = parts.scheduler
    if name == "heun":
        scheduler = FlowMatchHeunDiscreteScheduler(shift=scheduler.config.shift)
    return pipeline_of(parts, kind, scheduler=scheduler)


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
@pytest.mark.parametrize("with_t5", [True, False])
@pytest.mark.parametrize("guided", [True, False])
def test_text_to_image_equals_diffusers(name: str, with_t5: bool, guided: bool) -> None:
    seed = random.randrange(2**31)
    parts = sd3_parts(seed, with_t5=with_t5)
    family = family_of("sd3", parts)
    job = Job(
        "a red circle above a blue square",
        noise(seed),
        negative="blurry, bad",
        scheduler=name,
        guidance=SCALE if guided else 1.0,
    )
    ours = draw(family, job)
    inputs = {"latents": noise(seed), **SIZE}
    theirs = draw_with(oracle(parts, name), **settings_of(job, seed), **inputs)
    assert_drawn(family, ours, *theirs, seed)
    assert (ours - noise(seed)).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
@pytest.mark.parametrize("strength", [0.35, 0.6, 0.999])
def test_image_to_image_equals_diffusers(name: str, strength: float) -> None:
    seed = random.randrange(2**31)
    parts = sd3_parts(seed)
    family = family_of("sd3", parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    fields = {"scheduler": name, "num_steps": 4, "guidance": SCALE}
    job = redrawing(family, image, strength, seed, prompt="a small star", **fields)
    inputs = {"image": (image + 1) / 2, "strength": strength, **SIZE}
    pipeline = oracle(parts, name, StableDiffusion3Img2ImgPipeline)
    theirs = draw_with(pipeline, **settings_of(job, seed), **inputs)
    assert_drawn(family, draw(family, job), *theirs, seed)


def test_dynamic_shift_equals_diffusers() -> None:
    seed = random.randrange(2**31)
    dynamic = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 60}
    parts = sd3_parts(seed, **dynamic)
    family = family_of("sd3", parts)
    job = Job("a cat", noise(seed), guidance=1.0)
    inputs = {"latents": noise(seed), **SIZE}
    theirs = draw_with(oracle(parts, "euler"), **settings_of(job, seed), **inputs)
    assert_drawn(family, draw(family, job), *theirs, seed)
    schedule = family.new_noise_schedule(None, job.num_steps, WIDTH, HEIGHT)
    small = family.new_noise_schedule(None, job.num_steps, 16, 16).timesteps
    assert schedule.timesteps[1] > small[1], "larger pictures keep more noise"
    # A sampler without mu has the same shift, by its other name.
    heun = family.new_noise_schedule("heun", 2, WIDTH, HEIGHT)
    euler = family.new_noise_schedule("euler", 2, WIDTH, HEIGHT)
    assert heun.timesteps[0].item() == pytest.approx(euler.timesteps[0].item(), rel=1e-3)


def test_clip_skip_equals_diffusers() -> None:
    seed = random.randrange(2**31)
    parts = sd3_parts(seed)
    ours = family_of("sd3", parts).encode_prompts([PromptText(text="a dog", clip_skip=1)])[0]
    with torch.no_grad():
        states, _, pooled, _ = oracle(parts, "euler").encode_prompt(
            "a dog", None, None, do_classifier_free_guidance=False, clip_skip=1
        )
    close = {"rtol": 1e-4, "atol": 1e-5, "msg": f"{seed=}"}
    torch.testing.assert_close(ours.states, states, **close)
    torch.testing.assert_close(ours.pooled, pooled, **close)


def test_facts_and_limits() -> None:
    family = family_of("sd3", sd3_parts(1))
    facts = family.facts
    assert facts.denoising.guidance is GuidanceKind.CLASSIFIER_FREE
    assert facts.denoising.schedulers == ("euler", "heun")
    assert (facts.latent_channels, facts.vae_factor, facts.size_multiple) == (CHANNELS, FACTOR, 8)
    assert ImageTask.EDIT not in facts.tasks
    inputs = ImageTask.INPAINT, torch.zeros(1), torch.zeros(1), torch.Generator()
    assert family.image_condition(*inputs) is None
    with pytest.raises(InvalidParameter, match=r"136x8; .* 128 pixels"):
        family.new_noise_schedule(None, 2, 136, 8)
    with pytest.raises(InvalidParameter, match="ddim"):
        family.new_noise_schedule("ddim", 2, 16, 16)


def test_refuses_a_transformer_with_other_channels() -> None:
    parts = sd3_parts(1)
    parts.transformer.register_to_config(in_channels=33)
    with pytest.raises(UnsupportedArchitecture, match="33 channels"):
        family_of("sd3", parts)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 12)])
def test_previews_have_a_pixel_per_cell(size: tuple[int, int]) -> None:
    family = family_of("sd3", sd3_parts(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = family.preview(torch.randn((2, CHANNELS, *size)))
    assert picture.shape == (2, 3, *size)
    assert picture.abs().max() <= 1
    assert picture.std() > 0
