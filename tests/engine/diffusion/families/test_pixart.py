"""PixArt against diffusers' pipelines, on tiny random components."""

import random
from pathlib import Path

import pytest
import torch
from diffusers import PixArtAlphaPipeline, PixArtSigmaPipeline

from engine.contract.draw import GuidanceKind
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedArchitecture
from tests.helpers.diffusion.denoise_loop import Job, draw, settings_of
from tests.helpers.diffusion.tiny_families import family_of, load_folder
from tests.helpers.diffusion.tiny_transformers import (
    CHANNELS,
    FACTOR,
    assert_drawn,
    draw_with_callback,
    noise,
    pipeline_of,
    pixart_parts,
)

WIDTH, HEIGHT = 48, 32
SETTINGS = {
    "width": WIDTH,
    "height": HEIGHT,
    "use_resolution_binning": False,
    "clean_caption": False,
}
SIZED = {
    "sample_size": 128,
    "num_attention_heads": 3,
    "cross_attention_dim": 96,
}
"""Alpha's conditions on the picture's size, which take thirds of the width."""
PROMPT, NEGATIVE = "A red circle above a blue square ", "Blurry"


@pytest.mark.parametrize("kind", [PixArtAlphaPipeline, PixArtSigmaPipeline])
@pytest.mark.parametrize("scale", [1.0, 4.5])
def test_text_to_image_equals_diffusers(kind: type, scale: float, tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    parts = pixart_parts(seed, **(SIZED if kind is PixArtAlphaPipeline else {}))
    pipeline = pipeline_of(parts, kind)
    pipeline.save_pretrained(tmp_path)
    family = load_folder(tmp_path)
    job = Job(PROMPT, noise(seed), negative=NEGATIVE, guidance=scale)
    ours = draw(family, job)
    inputs = settings_of(job, seed) | SETTINGS | {"latents": noise(seed)}
    theirs = draw_with_callback(pipeline, **inputs)
    assert_drawn(family, ours, *theirs, seed)
    assert (ours - noise(seed)).abs().max() > 0.1, "denoising did something"


@pytest.mark.parametrize("prompt", ["", "A Dog", "two stars " * 100])
def test_prompts_equal_diffusers(prompt: str) -> None:
    parts = pixart_parts(random.randrange(2**31))
    [ours] = family_of("pixart", parts).encode_prompts([PromptText(text=prompt)])
    with torch.no_grad():
        theirs, mask, *_ = pipeline_of(parts).encode_prompt(prompt, False)
    kept = theirs[:, : int(mask.sum())]
    torch.testing.assert_close(ours.states, kept, rtol=0, atol=1e-4)
    assert bool(ours.warnings) == (kept.shape[1] == 300)


def test_facts() -> None:
    facts = family_of("pixart", pixart_parts(1)).facts
    assert facts.denoising.guidance is GuidanceKind.CLASSIFIER_FREE
    assert set(facts.denoising.schedulers) == set(DIFFUSION_SCHEDULES)
    assert (facts.latent_channels, facts.vae_factor, facts.size_multiple) == (CHANNELS, FACTOR, 8)
    assert facts.default_width == 8 * FACTOR


def test_refuses_a_transformer_with_other_channels() -> None:
    parts = pixart_parts(1)
    parts.transformer.register_to_config(in_channels=33)
    with pytest.raises(UnsupportedArchitecture, match="33 channels"):
        family_of("pixart", parts)
