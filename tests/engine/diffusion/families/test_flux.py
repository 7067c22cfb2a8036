"""FLUX against diffusers' pipelines, on tiny random components."""

import json
import math
import random
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
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.family import Row
from engine.diffusion.families.flux import FluxFamily, pack, position_ids, unpack
from engine.diffusion.noise_schedule import FLOW_SCHEDULES, NoiseSchedule
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter, UnsupportedArchitecture
from tests.helpers.diffusion.tiny_transformers import CHANNELS, FACTOR, FluxParts, draw, flux_parts

TOLERANCE = 1e-4
WIDTH, HEIGHT, STEPS, SCALE = 48, 32, 3, 3.5
LENGTH = 24
"""Tokens that prompts are padded to."""
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 60}
DEV = {"guidance_embeds": True}
FILL = {**DEV, "in_channels": 2 * 4 * CHANNELS + 4 * FACTOR**2}
CPU = torch.device("cpu")
PROMPT = "a red circle above a blue square"


class HeunForFlux(FlowMatchHeunDiscreteScheduler):
    """FLUX's pipelines insist on handing sigmas and mu over; this sampler has its own."""

    def set_timesteps(
        self,
        num_inference_steps: Any = None,
        device: Any = None,
        sigmas: Any = None,
        mu: Any = None,
    ) -> None:
        super().set_timesteps(len(sigmas), device)


def family_of(parts: FluxParts, *, edits: bool = False) -> FluxFamily:
    return FluxFamily(
        transformer=parts.transformer,
        autoencoder=Autoencoder(parts.vae, dtype=torch.float32, device=CPU),
        clip=ClipPromptEncoder(parts.tokenizer, parts.text_encoder, final_norm=True),
        t5=T5PromptEncoder(parts.tokenizer_2, parts.text_encoder_2, max_sequence_length=LENGTH),
        scheduler_config=json.loads(parts.scheduler.to_json_string()),
        edits=edits,
        dtype=torch.float32,
        device=CPU,
    )


def oracle(parts: FluxParts, name: str, kind: Any = FluxPipeline) -> Any:
    scheduler = parts.scheduler
    if name == "heun":
        shift = parts.scheduler.config.shift
        if parts.scheduler.config.use_dynamic_shifting:
            tokens = WIDTH * HEIGHT / (2 * FACTOR) ** 2
            shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - 4) / (60 - 4))
        scheduler = HeunForFlux(shift=shift)
    pipeline = kind(**{**vars(parts), "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    if name == "heun" and kind is FluxImg2ImgPipeline:
        # It takes the number of timesteps, nearly two a step, for that of steps.
        cut = pipeline.get_timesteps
        pipeline.get_timesteps = lambda _, strength, device: cut(STEPS, strength, device)
    return pipeline


def arguments(**more: Any) -> dict[str, Any]:
    return dict(
        prompt=PROMPT, num_inference_steps=STEPS, guidance_scale=SCALE, height=HEIGHT, width=WIDTH,
        max_sequence_length=LENGTH, **more,
    )  # fmt: skip


def denoise(
    family: FluxFamily,
    schedule: NoiseSchedule,
    latents: torch.Tensor,
    image_latents: torch.Tensor | None = None,
    begin: int = 0,
) -> torch.Tensor:
    """The loop of an engine with one image."""
    prompt = family.encode_prompts([PromptText(text=PROMPT)])[0]
    for index in range(begin, schedule.num_timesteps):
        row = Row(
            latents=schedule.scale(latents, index),
            timestep=schedule.timesteps[index],
            prompt=prompt,
            image_latents=image_latents,
            guidance_scale=SCALE,
        )
        prediction = family.denoise("image", [row])
        latents = schedule.step(prediction, index, latents, torch.Generator())
    return latents


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, CHANNELS, height // FACTOR, width // FACTOR), generator=generator)


def unpacked(tokens: torch.Tensor) -> torch.Tensor:
    return FluxPipeline._unpack_latents(tokens, HEIGHT, WIDTH, FACTOR)


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
    parts = flux_parts(
        seed, {"guidance_embeds": guided}, **(DYNAMIC if dynamic else {"shift": 1.0})
    )
    family = family_of(parts)
    schedule = family.new_noise_schedule(name, STEPS, WIDTH, HEIGHT)
    ours = denoise(family, schedule, noise(seed))
    theirs, picture = draw(oracle(parts, name), **arguments(latents=pack(noise(seed))))
    assert (ours - unpacked(theirs)).abs().max() < TOLERANCE, f"{seed=}"
    assert (family.decode(ours) - picture).abs().max() < TOLERANCE, f"{seed=}"
    assert (ours - noise(seed)).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
@pytest.mark.parametrize("strength", [0.35, 0.7, 0.999])
def test_image_to_image_equals_diffusers(name: str, strength: float) -> None:
    seed = random.randrange(2**31)
    parts = flux_parts(seed, DEV, **DYNAMIC)
    family = family_of(parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    schedule = family.new_noise_schedule(name, STEPS, WIDTH, HEIGHT)
    generator = torch.Generator().manual_seed(seed)
    clean = family.encode_image(image, generator)
    first_noise = torch.randn(clean.shape, generator=generator)
    begin = schedule.start_of(strength, STEPS)
    ours = denoise(family, schedule, schedule.noised(clean, first_noise, begin), begin=begin)
    theirs, picture = draw(
        oracle(parts, name, FluxImg2ImgPipeline),
        **arguments(
            image=(image + 1) / 2, strength=strength, generator=torch.Generator().manual_seed(seed)
        ),
    )
    assert (ours - unpacked(theirs)).abs().max() < TOLERANCE, f"{seed=}"
    assert (family.decode(ours) - picture).abs().max() < TOLERANCE, f"{seed=}"


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
def test_editing_equals_kontext(name: str) -> None:
    seed = random.randrange(2**31)
    parts = flux_parts(seed, DEV, **DYNAMIC)
    family = family_of(parts, edits=True)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    reference = family.image_condition(ImageTask.EDIT, image, None, torch.Generator())
    schedule = family.new_noise_schedule(name, STEPS, WIDTH, HEIGHT)
    ours = denoise(family, schedule, noise(seed), reference)
    theirs, picture = draw(
        oracle(parts, name, FluxKontextPipeline),
        **arguments(image=(image + 1) / 2, latents=pack(noise(seed))),
        _auto_resize=False,
        max_area=WIDTH * HEIGHT,
    )
    assert (ours - unpacked(theirs)).abs().max() < TOLERANCE, f"{seed=}"
    assert (family.decode(ours) - picture).abs().max() < TOLERANCE, f"{seed=}"
    plain = denoise(family, family.new_noise_schedule(name, STEPS, WIDTH, HEIGHT), noise(seed))
    assert (ours - plain).abs().max() > 1e-2, "the reference has an effect"


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
def test_filling_equals_diffusers(name: str) -> None:
    seed = random.randrange(2**31)
    parts = flux_parts(seed, {**FILL, "out_channels": 4 * CHANNELS}, **DYNAMIC)
    family = family_of(parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    mask = torch.zeros((1, 1, HEIGHT, WIDTH))
    mask[..., 5:20, 9:31] = 1.0
    generator = torch.Generator().manual_seed(seed)
    family.encode_image(image, generator)
    start = torch.randn(noise(seed).shape, generator=generator)
    condition = family.image_condition(ImageTask.INPAINT, image, mask, generator)
    schedule = family.new_noise_schedule(name, STEPS, WIDTH, HEIGHT)
    ours = denoise(family, schedule, start, condition)
    theirs, _ = draw(
        oracle(parts, name, FluxFillPipeline),
        **arguments(
            image=(image + 1) / 2, mask_image=mask, generator=torch.Generator().manual_seed(seed)
        ),
    )
    assert (ours - unpacked(theirs)).abs().max() < TOLERANCE, f"{seed=}"
    with pytest.raises(InvalidParameter, match="mask"):
        family.image_condition(ImageTask.INPAINT, image, None, generator)


def test_rows_of_different_requests_equal_one_by_one() -> None:
    """Timesteps, guidance, prompts, with and without references, references of two sizes."""
    seed = random.randrange(2**31)
    family = family_of(flux_parts(seed, DEV), edits=True)
    texts = ["a", "a blue triangle left of a star", "", "two stars", "a", "b"]
    references = [None, noise(1), None, noise(2), noise(3, 48, 16), None]
    rows = [
        Row(
            latents=noise(seed + i),
            timestep=family.new_noise_schedule(None, 6 + i, WIDTH, HEIGHT).timesteps[i],
            prompt=prompt,
            image_latents=reference,
            guidance_scale=1.0 + i,
        )
        for i, (prompt, reference) in enumerate(
            zip(
                family.encode_prompts([PromptText(text=text) for text in texts]),
                references,
                strict=True,
            )
        )
    ]
    together = family.denoise("edit", rows)
    apart = torch.cat([family.denoise("edit", [row]) for row in rows])
    assert together.shape == (6, CHANNELS, HEIGHT // FACTOR, WIDTH // FACTOR)
    assert (together - apart).abs().max() < 1e-5, f"{seed=}"
    other_scale = Row(
        latents=rows[0].latents, timestep=rows[0].timestep, prompt=rows[0].prompt,
        guidance_scale=9.0,
    )  # fmt: skip
    assert (family.denoise("image", [other_scale]) - apart[:1]).abs().max() > 1e-4


def test_facts() -> None:
    schnell, dev = family_of(flux_parts(1)).facts, family_of(flux_parts(1, DEV)).facts
    fast, slow = schnell.denoising, dev.denoising
    assert (fast.guidance, fast.default_steps) == (GuidanceKind.NONE, 4)
    assert (slow.guidance, slow.default_steps) == (GuidanceKind.DISTILLED, 28)
    assert (dev.latent_channels, dev.vae_factor, dev.size_multiple) == (CHANNELS, FACTOR, 8)
    assert slow.schedulers == ("euler", "heun")
    assert ImageTask.EDIT not in dev.tasks
    assert ImageTask.EDIT in family_of(flux_parts(1, DEV), edits=True).facts.tasks
    fill = family_of(flux_parts(1, FILL)).facts
    assert fill.tasks == (ImageTask.INPAINT,)


def test_refuses_control_models() -> None:
    parts = flux_parts(1, {"in_channels": 8 * CHANNELS})
    with pytest.raises(UnsupportedArchitecture, match="128, as control models"):
        family_of(parts)


def test_unknown_sampler_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="ddim"):
        family_of(flux_parts(1, DEV, **DYNAMIC)).new_noise_schedule("ddim", 2, 16, 16)
