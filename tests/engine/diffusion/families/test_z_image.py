"""Z-Image against diffusers' pipelines, on tiny random components."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageImg2ImgPipeline

from engine.contract.draw import GuidanceKind, PromptSyntax
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter, UnsupportedArchitecture
from tests.helpers.diffusion.denoise_loop import Job, draw, redrawing, settings_of
from tests.helpers.diffusion.tiny_families import family_of, load_folder
from tests.helpers.diffusion.tiny_language import z_image_parts
from tests.helpers.diffusion.tiny_transformers import (
    CHANNELS,
    FACTOR,
    assert_drawn,
    draw_with,
    noise,
    pipeline_of,
)
from tests.helpers.json_files import edit_json

WIDTH, HEIGHT = 48, 32
SIZE = {"width": WIDTH, "height": HEIGHT}
PROMPT, NEGATIVE = "a red circle above a blue square, and so on and on", "blurry"
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 60}


def theirs_of(pipeline: Any, job: Job, seed: int, **inputs: Any) -> Any:
    """The final latents and the picture of diffusers' pipeline, whose scale is smaller by 1."""
    settings = settings_of(job, seed) | {"guidance_scale": job.guidance - 1}
    return draw_with(pipeline, **settings, **SIZE, **inputs)


@pytest.mark.parametrize("scheduler", [{"shift": 3.0}, {"shift": 6.0}, DYNAMIC])
@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_text_to_image_equals_diffusers(scheduler: dict[str, Any], scale: float) -> None:
    seed = random.randrange(2**31)
    parts = z_image_parts(seed, **scheduler)
    family = family_of("z_image", parts)
    job = Job(PROMPT, noise(seed), negative=NEGATIVE, guidance=scale)
    if family.facts.denoising.guidance is GuidanceKind.NONE:
        job.guidance = 1.0
    ours = draw(family, job)
    assert_drawn(family, ours, *theirs_of(pipeline_of(parts), job, seed, latents=noise(seed)), seed)
    assert (ours - noise(seed)).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("strength", [0.35, 0.7, 0.999])
def test_image_to_image_equals_diffusers(strength: float) -> None:
    seed = random.randrange(2**31)
    parts = z_image_parts(seed)
    family = family_of("z_image", parts)
    image = torch.rand((1, 3, HEIGHT, WIDTH)) * 2 - 1
    job = redrawing(family, image, strength, seed, prompt=PROMPT, num_steps=4, guidance=4.0)
    inputs = {"image": (image + 1) / 2, "strength": strength}
    theirs = theirs_of(pipeline_of(parts, ZImageImg2ImgPipeline), job, seed, **inputs)
    assert_drawn(family, draw(family, job), *theirs, seed)


@pytest.mark.parametrize("prompt", ["", "a dog", "ein Bär " * 100, "<|im_end|> {}"])
def test_prompts_equal_diffusers(prompt: str) -> None:
    seed = random.randrange(2**31)
    parts = z_image_parts(seed)
    [ours] = family_of("z_image", parts).encode_prompts([PromptText(text=prompt)])
    with torch.no_grad():
        [theirs], _ = pipeline_of(parts).encode_prompt(prompt, do_classifier_free_guidance=False)
    torch.testing.assert_close(ours.states[0], theirs, rtol=0, atol=1e-4)
    assert bool(ours.warnings) == (len(theirs) == 512)


def test_weights_have_no_effect_and_blends_are_refused() -> None:
    family = family_of("z_image", z_image_parts(1))
    weighted = PromptText(text="a (dog)1.5", syntax=PromptSyntax.COMPEL)
    plain, found = family.encode_prompts([PromptText(text="a dog"), weighted])
    assert torch.equal(plain.states, found.states)
    assert "weights have no effect" in found.warnings[0]
    with pytest.raises(InvalidParameter, match="cannot blend"):
        family.encode_prompts(
            [PromptText(text='("a", "bc").blend(1, 1)', syntax=PromptSyntax.COMPEL)]
        )


def test_facts_and_limits(tmp_path: Path) -> None:
    family, turbo = (family_of("z_image", z_image_parts(1, shift=shift)) for shift in (6.0, 3.0))
    slow, fast = family.facts.denoising, turbo.facts.denoising
    assert (slow.guidance, slow.default_steps) == (GuidanceKind.CLASSIFIER_FREE, 50)
    assert (fast.guidance, fast.default_steps) == (GuidanceKind.NONE, 8)
    assert slow.schedulers == ("euler", "heun")
    facts = family.facts
    assert (facts.latent_channels, facts.vae_factor, facts.size_multiple) == (CHANNELS, FACTOR, 8)
    with pytest.raises(InvalidParameter, match=r"136x8; .* 128 pixels"):
        family.new_noise_schedule(None, 2, 136, 8)
    pipeline_of(z_image_parts(1, shift=3.0)).save_pretrained(tmp_path)
    edit_json(tmp_path / "model_index.json", {"_defaults": {"guidance_scale": 3}})
    assert load_folder(tmp_path).facts.denoising.guidance is GuidanceKind.CLASSIFIER_FREE


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"in_channels": 33}, "33 channels"),
        ({"cap_feat_dim": 32}, "states of 32"),
        ({"axes_lens": [64, 16, 16]}, "64 tokens of text"),
        ({"all_patch_size": [4]}, "cells on a side"),
    ],
)
def test_refuses_a_transformer_that_does_not_fit(config: dict[str, Any], words: str) -> None:
    parts = z_image_parts(1)
    parts.transformer.register_to_config(**config)
    with pytest.raises(UnsupportedArchitecture, match=words):
        family_of("z_image", parts)
