"""SD3 against diffusers' pipelines, on tiny random components."""

import json
import random
import warnings
from typing import Any

import pytest
import torch
from diffusers import (
    FlowMatchHeunDiscreteScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)

from engine.contract.draw import GuidanceKind, ImageTask
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.family import Row
from engine.diffusion.families.stable_diffusion_3 import StableDiffusion3Family
from engine.diffusion.noise_schedule import FLOW_SCHEDULES, NoiseSchedule
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter, UnsupportedArchitecture
from tests.helpers.diffusion.tiny_transformers import CHANNELS, FACTOR, Sd3Parts, draw, sd3_parts

TOLERANCE = 1e-4
WIDTH, HEIGHT, STEPS, SCALE = 48, 32, 3, 4.0
CPU = torch.device("cpu")


def family_of(parts: Sd3Parts) -> StableDiffusion3Family:
    encoders = ((parts.tokenizer, parts.text_encoder), (parts.tokenizer_2, parts.text_encoder_2))
    first, second = (
        ClipPromptEncoder(tokenizer, encoder, final_norm=False, default_skip=1)
        for tokenizer, encoder in encoders
    )
    t5 = None
    if parts.text_encoder_3 is not None:
        t5 = T5PromptEncoder(parts.tokenizer_3, parts.text_encoder_3, max_sequence_length=256)
    return StableDiffusion3Family(
        transformer=parts.transformer,
        autoencoder=Autoencoder(parts.vae, dtype=torch.float32, device=CPU),
        clips=(first, second),
        t5=t5,
        scheduler_config=json.loads(parts.scheduler.to_json_string()),
        dtype=torch.float32,
        device=CPU,
    )


def oracle(parts: Sd3Parts, name: str, kind: Any = StableDiffusion3Pipeline) -> Any:
    scheduler = parts.scheduler
    if name == "heun":
        shift = {"shift": parts.scheduler.config.shift}
        scheduler = FlowMatchHeunDiscreteScheduler(**shift)
    pipeline = kind(**{**vars(parts), "scheduler": scheduler})
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def denoise(
    family: StableDiffusion3Family,
    schedule: NoiseSchedule,
    latents: torch.Tensor,
    states: list[PromptStates],
    begin: int = 0,
) -> torch.Tensor:
    """The loop of an engine with one image; states are unconditional, conditional."""
    for index in range(begin, schedule.num_timesteps):
        scaled = schedule.scale(latents, index)
        timestep = schedule.timesteps[index]
        rows = [Row(latents=scaled, timestep=timestep, prompt=prompt) for prompt in states]
        out = family.denoise(family.denoiser_key(ImageTask.TEXT_TO_IMAGE), rows)
        prediction = out[:1] if len(states) == 1 else out[:1] + SCALE * (out[1:] - out[:1])
        latents = schedule.step(prediction, index, latents, torch.Generator())
    return latents


def noise(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, CHANNELS, HEIGHT // FACTOR, WIDTH // FACTOR), generator=generator)


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
@pytest.mark.parametrize("with_t5", [True, False])
@pytest.mark.parametrize("guided", [True, False])
def test_text_to_image_equals_diffusers(name: str, with_t5: bool, guided: bool) -> None:
    seed = random.randrange(2**31)
    parts = sd3_parts(seed, with_t5=with_t5)
    family, texts = family_of(parts), ["blurry, bad", "a red circle above a blue square"]
    states = family.encode_prompts([PromptText(text=text) for text in texts])
    schedule = family.new_noise_schedule(name, STEPS, WIDTH, HEIGHT)
    ours = denoise(family, schedule, noise(seed), states if guided else states[1:])
    arguments = {
        "prompt": texts[1],
        "negative_prompt": texts[0],
        "num_inference_steps": STEPS,
        "latents": noise(seed),
        "guidance_scale": SCALE if guided else 1.0,
        "height": HEIGHT,
        "width": WIDTH,
    }
    theirs, picture = draw(oracle(parts, name), **arguments)
    assert (ours - theirs).abs().max() < TOLERANCE, f"{seed=}"
    assert (family.decode(ours) - picture).abs().max() < TOLERANCE, f"{seed=}"
    assert (ours - noise(seed)).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("name", FLOW_SCHEDULES)
@pytest.mark.parametrize("strength", [0.35, 0.6, 0.999])
def test_image_to_image_equals_diffusers(name: str, strength: float) -> None:
    seed, steps = random.randrange(2**31), 4
    parts = sd3_parts(seed)
    family = family_of(parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    prompt = "a small star"
    states = family.encode_prompts([PromptText(text=text) for text in ("", prompt)])
    schedule = family.new_noise_schedule(name, steps, WIDTH, HEIGHT)
    generator = torch.Generator().manual_seed(seed)
    clean = family.encode_image(image, generator)
    first_noise = torch.randn(clean.shape, generator=generator)
    begin = schedule.start_of(strength, steps)
    start = schedule.noised(clean, first_noise, begin)
    ours = denoise(family, schedule, start, states, begin)
    theirs, picture = draw(
        oracle(parts, name, StableDiffusion3Img2ImgPipeline),
        prompt=prompt,
        image=(image + 1) / 2,
        strength=strength,
        num_inference_steps=steps,
        guidance_scale=SCALE,
        generator=torch.Generator().manual_seed(seed),
        height=HEIGHT,
        width=WIDTH,
    )
    assert (ours - theirs).abs().max() < TOLERANCE, f"{seed=}"
    assert (family.decode(ours) - picture).abs().max() < TOLERANCE, f"{seed=}"


def test_dynamic_shift_equals_diffusers() -> None:
    seed = random.randrange(2**31)
    dynamic = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 60}
    parts = sd3_parts(seed, **dynamic)
    family = family_of(parts)
    states = family.encode_prompts([PromptText(text="a cat")])
    schedule = family.new_noise_schedule(None, STEPS, WIDTH, HEIGHT)
    ours = denoise(family, schedule, noise(seed), states)
    theirs = oracle(parts, "euler")(
        prompt="a cat", num_inference_steps=STEPS, latents=noise(seed), guidance_scale=1.0,
        height=HEIGHT, width=WIDTH, output_type="latent",
    ).images  # fmt: skip
    assert (ours - theirs).abs().max() < TOLERANCE, f"{seed=}"
    small = family.new_noise_schedule(None, STEPS, 16, 16).timesteps
    assert schedule.timesteps[1] > small[1], "larger pictures keep more noise"
    # A sampler without mu has the same shift, by its other name.
    heun = family.new_noise_schedule("heun", 2, WIDTH, HEIGHT)
    euler = family.new_noise_schedule("euler", 2, WIDTH, HEIGHT)
    assert heun.timesteps[0].item() == pytest.approx(euler.timesteps[0].item(), rel=1e-3)


def test_clip_skip_equals_diffusers() -> None:
    seed = random.randrange(2**31)
    parts = sd3_parts(seed)
    ours = family_of(parts).encode_prompts([PromptText(text="a dog", clip_skip=1)])[0]
    with torch.no_grad():
        states, _, pooled, _ = oracle(parts, "euler").encode_prompt(
            "a dog", None, None, do_classifier_free_guidance=False, clip_skip=1
        )
    assert torch.equal(ours.states, states), f"{seed=}"
    assert torch.equal(ours.pooled, pooled), f"{seed=}"


def test_facts_and_limits() -> None:
    family = family_of(sd3_parts(1))
    facts = family.facts
    assert facts.denoising.guidance is GuidanceKind.CLASSIFIER_FREE
    assert facts.denoising.schedulers == ("euler", "heun")
    assert (facts.latent_channels, facts.vae_factor, facts.size_multiple) == (CHANNELS, FACTOR, 8)
    assert ImageTask.EDIT not in facts.tasks
    assert (
        family.image_condition(ImageTask.INPAINT, *[torch.zeros(1)] * 2, torch.Generator()) is None
    )
    with pytest.raises(InvalidParameter, match=r"136x8; .* 128 pixels"):
        family.new_noise_schedule(None, 2, 136, 8)
    with pytest.raises(InvalidParameter, match="ddim"):
        family.new_noise_schedule("ddim", 2, 16, 16)


def test_refuses_a_transformer_with_other_channels() -> None:
    parts = sd3_parts(1)
    parts.transformer.register_to_config(in_channels=33)
    with pytest.raises(UnsupportedArchitecture, match="33 channels"):
        family_of(parts)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 12)])
def test_previews_have_a_pixel_per_cell(size: tuple[int, int]) -> None:
    family = family_of(sd3_parts(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = family.preview(torch.randn((2, CHANNELS, *size)))
    assert picture.shape == (2, 3, *size)
    assert picture.abs().max() <= 1
    assert picture.std() > 0
