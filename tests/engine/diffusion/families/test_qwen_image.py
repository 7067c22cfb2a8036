"""Qwen-Image against diffusers' pipelines, on tiny random components."""

import copy
import random
from typing import Any

import pytest
import torch
from diffusers import QwenImageImg2ImgPipeline, QwenImagePipeline

from engine.contract.draw import GuidanceKind
from engine.diffusion.families.flux import pack
from engine.diffusion.families.frame_autoencoder import FrameAutoencoder
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedArchitecture
from tests.helpers.diffusion.denoise_loop import Job, draw, redrawing, settings_of
from tests.helpers.diffusion.tiny_families import CPU, family_of
from tests.helpers.diffusion.tiny_language import frame_vae, qwen_image_parts
from tests.helpers.diffusion.tiny_transformers import (
    CHANNELS,
    FACTOR,
    assert_drawn,
    draw_with,
    noise,
    pipeline_of,
)

WIDTH, HEIGHT = 48, 32
SIZE = {"width": WIDTH, "height": HEIGHT}
PROMPT, NEGATIVE = "a red circle above a blue square", "blurry"


def theirs_of(pipeline: Any, job: Job, seed: int, **inputs: Any) -> Any:
    """The final latents of diffusers' pipeline, in our layout, and its picture."""
    settings = settings_of(job, seed)
    settings["true_cfg_scale"] = settings.pop("guidance_scale")
    tokens, picture = draw_with(pipeline, **settings, **SIZE, **inputs)
    return QwenImagePipeline._unpack_latents(tokens, HEIGHT, WIDTH, FACTOR)[:, :, 0], picture


@pytest.mark.parametrize("scheduler", [{}, {"use_dynamic_shifting": False, "shift": 3.0}])
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_text_to_image_equals_diffusers(scheduler: dict[str, Any], scale: float) -> None:
    seed = random.randrange(2**31)
    parts = qwen_image_parts(seed, **scheduler)
    family = family_of("qwen_image", parts)
    job = Job(PROMPT, noise(seed), negative=NEGATIVE, guidance=scale)
    ours = draw(family, job)
    theirs = theirs_of(pipeline_of(parts), job, seed, latents=pack(noise(seed)))
    assert_drawn(family, ours, *theirs, seed)
    assert (ours - noise(seed)).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("strength", [0.35, 0.7, 0.999])
def test_image_to_image_equals_diffusers(strength: float) -> None:
    seed = random.randrange(2**31)
    parts = qwen_image_parts(seed)
    family = family_of("qwen_image", parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    fields = {"prompt": PROMPT, "negative": NEGATIVE, "num_steps": 4, "guidance": 4.0}
    job = redrawing(family, image, strength, seed, **fields)
    inputs = {"image": (image + 1) / 2, "strength": strength}
    theirs = theirs_of(pipeline_of(parts, QwenImageImg2ImgPipeline), job, seed, **inputs)
    assert_drawn(family, draw(family, job), *theirs, seed)


@pytest.mark.parametrize("prompt", ["", "a dog", "ein Bär " * 100, "<|im_end|> {}"])
def test_prompts_equal_diffusers(prompt: str) -> None:
    seed = random.randrange(2**31)
    parts = qwen_image_parts(seed)
    [ours] = family_of("qwen_image", parts).encode_prompts([PromptText(text=prompt)])
    with torch.no_grad():
        theirs, _ = pipeline_of(parts).encode_prompt(prompt, max_sequence_length=512)
    torch.testing.assert_close(ours.states, theirs, rtol=0, atol=1e-4)
    assert bool(ours.warnings) == (theirs.shape[1] == 512)


def test_a_picture_is_the_first_frame_of_a_video() -> None:
    vae = frame_vae(base_dim=random.choice([4, 16]))
    ours = FrameAutoencoder(copy.deepcopy(vae), dtype=torch.float32, device=CPU)
    image = torch.rand((2, 3, HEIGHT, WIDTH)) * 2 - 1
    shape = (1, CHANNELS, 1, 1, 1)
    mean, deviation = (
        torch.tensor(numbers).view(shape)
        for numbers in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        latents = vae.encode(image[:, :, None]).latent_dist.mode()
        decoded = vae.decode(latents).sample[:, :, 0]
    scaled = ((latents - mean) / deviation)[:, :, 0]
    torch.testing.assert_close(ours.encode(image, None), scaled, rtol=0, atol=1e-4)
    torch.testing.assert_close(ours.encode(image, None, scaled=False), latents[:, :, 0])
    torch.testing.assert_close(ours.decode(scaled), decoded, rtol=0, atol=1e-4)
    assert ours.preview(scaled).shape == (2, 3, HEIGHT // FACTOR, WIDTH // FACTOR)
    with pytest.raises(UnsupportedArchitecture, match="4 channels"):
        FrameAutoencoder(frame_vae(input_channels=4), dtype=torch.float32, device=CPU)


def test_facts() -> None:
    facts = family_of("qwen_image", qwen_image_parts(1)).facts
    assert facts.denoising.guidance is GuidanceKind.CLASSIFIER_FREE
    assert (facts.denoising.default_steps, facts.denoising.default_guidance_scale) == (50, 4.0)
    assert facts.denoising.schedulers == ("euler", "heun")
    assert (facts.latent_channels, facts.vae_factor, facts.size_multiple) == (CHANNELS, FACTOR, 8)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"in_channels": 33}, "33 channels"),
        ({"joint_attention_dim": 32}, "states of 32"),
        ({"use_layer3d_rope": True}, "Qwen-Image-Layered"),
    ],
)
def test_refuses_a_transformer_that_does_not_fit(config: dict[str, Any], words: str) -> None:
    parts = qwen_image_parts(1)
    parts.transformer.register_to_config(**config)
    with pytest.raises(UnsupportedArchitecture, match=words):
        family_of("qwen_image", parts)
