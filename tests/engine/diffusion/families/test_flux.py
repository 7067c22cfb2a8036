"""FLUX against diffusers' pipelines, on tiny random components."""

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)

from engine.contract.draw import GuidanceKind, ImageTask
from engine.diffusion.families.family import Row
from engine.diffusion.families.flux import pack, position_ids, unpack
from engine.diffusion.noise_schedule import FLOW_SCHEDULES
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter, UnsupportedArchitecture
from tests.helpers.diffusion.denoise_loop import Job, draw, redrawing, settings_of
from tests.helpers.diffusion.tiny_families import CPU, T5_TOKENS, family_of
from tests.helpers.diffusion.tiny_transformers import (
    CHANNELS,
    FACTOR,
    FluxParts,
    assert_drawn,
    draw_with,
    flux_parts,
    noise,
    pipeline_of,
)

WIDTH, HEIGHT, STEPS, SCALE = 48, 32, 3, 3.5
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 60}
DEV = {"guidance_embeds": True}
FILL = {**DEV, "in_channels": 2 * 4 * CHANNELS + 4 * FACTOR**2}
PROMPT = "a red circle above a blue square"


class HeunForFlux(FlowMatchHeunDiscreteScheduler):
    """FLUX's pipelines insist on handing sigmas and mu over; this sampler has its own."""

    def set_timesteps(self, num_inference_steps=None, device=None, sigmas=None, mu=None):
        super().set_timesteps(len(sigmas), device)


def oracle(parts: FluxParts, name: str, kind: Any = None) -> Any:
    scheduler = parts.scheduler
    if name == "heun":
        shift = parts.scheduler.config.shift
        if parts.scheduler.config.use_dynamic_shifting:
            tokens = WIDTH * HEIGHT / (2 * FACTOR) ** 2
            shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - 4) / (60 - 4))
        scheduler = HeunForFlux(shift=shift)
    pipeline = pipeline_of(parts, kind, scheduler=scheduler)
    if name == "heun" and kind is FluxImg2ImgPipeline:
        # It takes the number of timesteps, nearly two a step, for that of steps.
        cut = pipeline.get_timesteps
        pipeline.get_timesteps = lambda _, strength, device: cut(STEPS, strength, device)
    return pipeline


def theirs_of(pipeline: Any, job: Job, seed: int, **inputs: Any) -> Any:
    """The final latents of diffusers' pipeline, in our layout, and its picture."""
    inputs |= {"height": HEIGHT, "width": WIDTH, "max_sequence_length": T5_TOKENS}
    tokens, picture = draw_with(pipeline, **settings_of(job, seed), **inputs)
    return FluxPipeline._unpack_latents(tokens, HEIGHT, WIDTH, FACTOR), picture


def job_of(name: str, latents: torch.Tensor, **changes: Any) -> Job:
    return Job(PROMPT, latents, scheduler=name, guidance=SCALE, **changes)


def test_packing_equals_diffusers() -> None:
    latents = torch.randn((2, CHANNELS, 6, 10))
    tokens = FluxPipeline._pack_latents(latents, 2, CHANNELS, 6, 10)
    assert torch.equal(pack(latents), tokens)
    assert torch.equal(unpack(tokens, 6, 10), latents)
    ids = FluxPipeline._prepare_latent_image_ids(1, 3, 5, CPU, torch.float32)
    assert torch.equal(position_ids(6, 10, image=0), ids)
    assert position_ids(6, 10, image=1)[:, 0].eq(1).all()


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("guided", [True, False])
def test_text_to_image_equals_diffusers(name: str, dynamic: bool, guided: bool) -> None:
    seed = random.randrange(2**31)
    scheduler = DYNAMIC if dynamic else {"shift": 1.0}
    parts = flux_parts(seed, {"guidance_embeds": guided}, **scheduler)
    family, job = family_of("flux", parts), job_of(name, noise(seed))
    ours = draw(family, job)
    theirs = theirs_of(oracle(parts, name), job, seed, latents=pack(noise(seed)))
    assert_drawn(family, ours, *theirs, seed)
    assert (ours - noise(seed)).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
@pytest.mark.parametrize("strength", [0.35, 0.7, 0.999])
def test_image_to_image_equals_diffusers(name: str, strength: float) -> None:
    seed = random.randrange(2**31)
    parts = flux_parts(seed, DEV, **DYNAMIC)
    family = family_of("flux", parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    fields = {"prompt": PROMPT, "scheduler": name, "guidance": SCALE}
    job = redrawing(family, image, strength, seed, **fields)
    pipeline = oracle(parts, name, FluxImg2ImgPipeline)
    theirs = theirs_of(pipeline, job, seed, image=(image + 1) / 2, strength=strength)
    assert_drawn(family, draw(family, job), *theirs, seed)


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
def test_editing_equals_kontext(name: str) -> None:
    seed = random.randrange(2**31)
    parts = flux_parts(seed, DEV, **DYNAMIC)
    family = family_of("flux", parts, edits=True)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    references = (family.encode_image(image, None),)
    job = job_of(name, noise(seed), task=ImageTask.EDIT, references=references)
    ours = draw(family, job)
    theirs = theirs_of(
        oracle(parts, name, FluxKontextPipeline),
        job,
        seed,
        image=(image + 1) / 2,
        latents=pack(noise(seed)),
        _auto_resize=False,
        max_area=WIDTH * HEIGHT,
    )
    assert_drawn(family, ours, *theirs, seed)
    plain = draw(family, job_of(name, noise(seed)))
    assert (ours - plain).abs().max() > 1e-2, "the reference has an effect"


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
def test_filling_equals_diffusers(name: str) -> None:
    seed = random.randrange(2**31)
    parts = flux_parts(seed, {**FILL, "out_channels": 4 * CHANNELS}, **DYNAMIC)
    family = family_of("flux", parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    mask = torch.zeros((1, 1, HEIGHT, WIDTH))
    mask[..., 5:20, 9:31] = 1.0
    generator = torch.Generator().manual_seed(seed)
    family.encode_image(image, generator)
    start = torch.randn(noise(seed).shape, generator=generator)
    condition = family.image_condition(ImageTask.INPAINT, image, mask, generator)
    job = job_of(name, start, task=ImageTask.INPAINT, image_latents=condition)
    pipeline = oracle(parts, name, FluxFillPipeline)
    theirs = theirs_of(pipeline, job, seed, image=(image + 1) / 2, mask_image=mask)
    assert_drawn(family, draw(family, job), *theirs, seed)
    with pytest.raises(InvalidParameter, match="mask"):
        family.image_condition(ImageTask.INPAINT, image, None, generator)


def test_rows_of_different_requests_equal_one_by_one() -> None:
    """Timesteps, guidance, prompts, with and without references, references of two sizes."""
    seed = random.randrange(2**31)
    family = family_of("flux", flux_parts(seed, DEV), edits=True)
    texts = ["a", "a blue triangle left of a star", "", "two stars", "a", "b"]
    prompts = family.encode_prompts([PromptText(text=text) for text in texts])
    references = [None, noise(1), None, noise(2), noise(3, 48, 16), None]
    rows = [
        Row(
            latents=noise(seed + i),
            timestep=family.new_noise_schedule(None, 6 + i, WIDTH, HEIGHT).timesteps[i],
            prompt=prompt,
            references=() if reference is None else (reference,),
            guidance_scale=1.0 + i,
        )
        for i, (prompt, reference) in enumerate(zip(prompts, references, strict=True))
    ]
    together = family.denoise("edit", rows)
    apart = torch.cat([family.denoise("edit", [row]) for row in rows])
    assert together.shape == (6, CHANNELS, HEIGHT // FACTOR, WIDTH // FACTOR)
    assert (together - apart).abs().max() < 1e-5, f"{seed=}"
    other_scale = replace(rows[0], guidance_scale=9.0)
    assert (family.denoise("image", [other_scale]) - apart[:1]).abs().max() > 1e-4


def test_facts() -> None:
    schnell, dev = (
        family_of("flux", flux_parts(1)).facts,
        family_of("flux", flux_parts(1, DEV)).facts,
    )
    fast, slow = schnell.denoising, dev.denoising
    assert (fast.guidance, fast.default_steps) == (GuidanceKind.NONE, 4)
    assert (slow.guidance, slow.default_steps) == (GuidanceKind.DISTILLED, 28)
    assert (dev.latent_channels, dev.vae_factor, dev.size_multiple) == (CHANNELS, FACTOR, 8)
    assert slow.schedulers == ("euler", "heun")
    assert ImageTask.EDIT not in dev.tasks
    assert ImageTask.EDIT in family_of("flux", flux_parts(1, DEV), edits=True).facts.tasks
    fill = family_of("flux", flux_parts(1, FILL)).facts
    assert fill.tasks == (ImageTask.INPAINT,)


def test_refuses_control_models() -> None:
    parts = flux_parts(1, {"in_channels": 8 * CHANNELS})
    with pytest.raises(UnsupportedArchitecture, match="128, as control models"):
        family_of("flux", parts)


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="ddim"):
        family_of("flux", flux_parts(1, DEV, **DYNAMIC)).new_noise_schedule("ddim", 2, 16, 16)
