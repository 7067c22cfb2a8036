"""Stable Diffusion XL against diffusers' pipelines over the same tiny random weights."""

import random
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from denoise_loop import Job, assert_same, draw, draw_together
from tiny_pipelines import CPU, FACTOR, Parts, tiny_parts

from engine.contract.draw import ImageTask
from engine.diffusion.families.family import Row
from engine.diffusion.families.stable_diffusion_xl import StableDiffusionXLFamily
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedArchitecture

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")

_PARTS: dict[tuple[Any, ...], Parts] = {}


def parts_of(prediction_type: str = "epsilon", in_channels: int = 4) -> Parts:
    key = (prediction_type, in_channels)
    if key not in _PARTS:
        torch.set_num_threads(1)
        _PARTS[key] = tiny_parts(
            len(_PARTS), prediction_type=prediction_type, in_channels=in_channels, xl=True
        )
    return _PARTS[key]


def fresh_seed() -> int:
    return random.randrange(2**31)


def noise(seed: int, height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randn((1, 4, height, width), generator=torch.Generator().manual_seed(seed))


def use(pipeline: Any, family: Any, name: str) -> None:
    schedule = family.new_noise_schedule(name, 2, 16, 16)
    pipeline.scheduler = type(schedule._scheduler).from_config(schedule._scheduler.config)


@pytest.mark.parametrize(
    "prediction_type", ["epsilon", pytest.param("v_prediction", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", DIFFUSION_SCHEDULES)
def test_text_to_image(name: str, prediction_type: str) -> None:
    parts, seed = parts_of(prediction_type), fresh_seed()
    family = parts.family()
    pipeline = parts.pipeline(diffusers.StableDiffusionXLPipeline)
    use(pipeline, family, name)
    choose = random.Random(seed)
    job = Job(
        "a red fox",
        noise(seed, 8, 12),
        negative=choose.choice(["blue", "a long list of things"]),
        scheduler=name,
        guidance=choose.choice([1.0, 2.0, 5.0]),
        generator=torch.Generator().manual_seed(seed),
    )
    theirs = pipeline(
        prompt=job.prompt,
        negative_prompt=job.negative,
        latents=job.latents.clone(),
        height=16,
        width=24,
        num_inference_steps=job.num_steps,
        guidance_scale=job.guidance,
        eta=0.3 if name == "tcd" else 0.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images
    ours = draw(family, job)
    case = (name, prediction_type, seed, job.guidance)
    assert_same(ours, theirs, case)
    decoded = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
    assert_same(family.decode(ours), decoded.clamp(-1, 1), case)


@pytest.mark.parametrize("zeros", [True, False])
def test_without_a_negative_prompt(zeros: bool) -> None:
    parts, seed = parts_of(), fresh_seed()
    family = parts.family(zeros_for_empty=zeros)
    pipeline = parts.pipeline(
        diffusers.StableDiffusionXLPipeline, force_zeros_for_empty_prompt=zeros
    )
    theirs = pipeline(
        prompt="a boat",
        latents=noise(seed),
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=6.0,
        output_type="latent",
    ).images
    assert_same(draw(family, Job("a boat", noise(seed), guidance=6.0)), theirs, (zeros, seed))
    states = family.encode_prompts([PromptText(text="")])[0]
    assert states.pooled is not None
    assert (states.states.abs().max() == 0) == (states.pooled.abs().max() == 0) == zeros


def test_clip_skip_counts_from_the_layer_before_the_last() -> None:
    parts, seed = parts_of(), fresh_seed()
    theirs = parts.pipeline(diffusers.StableDiffusionXLPipeline)(
        prompt="a boat",
        latents=noise(seed),
        height=16,
        width=16,
        num_inference_steps=3,
        guidance_scale=1.0,
        clip_skip=1,
        output_type="latent",
    ).images
    job = Job("a boat", noise(seed), guidance=1.0, clip_skip=1)
    assert_same(draw(parts.family(), job), theirs, seed)


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "ddim"])
def test_image_to_image(name: str) -> None:
    parts, seed = parts_of(), fresh_seed()
    family = parts.family()
    pipeline = parts.pipeline(diffusers.StableDiffusionXLImg2ImgPipeline)
    use(pipeline, family, name)
    image = torch.rand((1, 3, 16, 24), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    theirs = pipeline(
        prompt="a hat",
        negative_prompt="rain",
        image=image,
        strength=0.6,
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images
    generator = torch.Generator().manual_seed(seed)
    clean = family.encode_image(image, generator)
    schedule = family.new_noise_schedule(name, 5, 24, 16)
    start = schedule.start_of(0.6, 5)
    latents = schedule.noised(clean, torch.randn(clean.shape, generator=generator), start)
    job = Job("a hat", latents, negative="rain", guidance=4.0, start=start, schedule=schedule)
    assert_same(draw(family, job), theirs, (name, seed))


def test_inpainting_unet() -> None:
    parts, seed = parts_of(in_channels=9), fresh_seed()
    family = parts.family()
    pipeline = parts.pipeline(diffusers.StableDiffusionXLInpaintPipeline)
    image = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    mask = torch.zeros((1, 1, 16, 16))
    mask[..., 4:12, 6:14] = 1.0
    theirs = pipeline(
        prompt="a door",
        negative_prompt="wood",
        image=image,
        mask_image=mask,
        height=16,
        width=16,
        strength=1.0,
        num_inference_steps=3,
        guidance_scale=6.0,
        latents=noise(seed),
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images
    job = Job(
        "a door",
        noise(seed),
        negative="wood",
        task=ImageTask.INPAINT,
        guidance=6.0,
        image_latents=family.image_condition(
            ImageTask.INPAINT, image, mask, torch.Generator().manual_seed(seed)
        ),
    )
    assert_same(draw(family, job), theirs, seed)


def test_a_batch_equals_its_rows_one_by_one() -> None:
    seed = fresh_seed()
    choose = random.Random(seed)
    family = parts_of().family()
    texts = ["a cat", "", "so many words about boats " * 5]
    jobs = [
        Job(
            choose.choice(texts),
            noise(seed + index),
            negative=choose.choice(texts),
            scheduler=choose.choice(["euler", "ddim", "dpmpp_2m", "heun"]),
            num_steps=choose.randint(2, 5),
            guidance=choose.choice([1.0, 5.0]),
        )
        for index in range(5)
    ]
    together = draw_together(family, jobs, [choose.randint(0, 3) for _ in jobs])
    for index, job in enumerate(jobs):
        assert_same(together[index], draw(family, job), (seed, index, job))


def test_rows_of_different_pictures_know_their_own_size() -> None:
    family = parts_of().family()
    prompt = family.encode_prompts([PromptText(text="x")])[0]
    rows = [
        Row(
            latents=noise(1),
            timestep=torch.tensor(500),
            prompt=prompt,
            width=width,
            height=8 * FACTOR,
        )
        for width in (16, 64)
    ]
    both = family.denoise("unet", rows)
    assert not torch.allclose(both[0], both[1])
    alone = torch.cat([family.denoise("unet", [row]) for row in rows])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)
    assert family.device == CPU


def test_refiners_are_refused() -> None:
    with pytest.raises(UnsupportedArchitecture, match="refiner"):
        StableDiffusionXLFamily.options_of(
            SimpleNamespace(index={"requires_aesthetics_score": True})
        )
