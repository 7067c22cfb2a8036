"""Stable Diffusion, XL included, against diffusers' pipelines over the same tiny random weights."""

import copy
import random
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from engine.contract.draw import ImageTask
from engine.diffusion.families.stable_diffusion import stack_states
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES
from engine.errors import InvalidParameter, UnsupportedArchitecture
from tests.helpers.diffusion.denoise_loop import (
    Job,
    assert_same,
    draw,
    redrawing,
    their_latents,
)
from tests.helpers.diffusion.tiny_pipelines import (
    FACTOR,
    Parts,
    fresh_seed,
    from_noise,
    noise,
    parts_of,
    tiny_unet,
    use,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


def picture(seed: int, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((1, 3, height, width), generator=generator) * 2 - 1


def pipeline_of(parts: Parts, task: str, family: Any, name: str) -> Any:
    """diffusers' pipeline for a task, with the scheduler that the name stands for."""
    pipeline = parts.pipeline(getattr(diffusers, f"StableDiffusion{'XL' * parts.is_xl}{task}"))
    use(pipeline, family, name)
    return pipeline


def assert_same_picture(family: Any, pipeline: Any, latents: torch.Tensor, case: object) -> None:
    """Decoded as the pipeline decodes, in [0, 1]."""
    unscaled = latents / pipeline.vae.config.scaling_factor
    theirs = (pipeline.vae.decode(unscaled).sample / 2 + 0.5).clamp(0, 1)
    assert_same(family.decode(latents) / 2 + 0.5, theirs, case)


@pytest.mark.each_value  # every step of all: tests/engine/diffusion/test_offered_schedules.py
@pytest.mark.parametrize(
    ("xl", "prediction_type"),
    [
        (False, "epsilon"),
        (False, "v_prediction"),
        (True, "epsilon"),
        pytest.param(True, "v_prediction", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", DIFFUSION_SCHEDULES)
def test_text_to_image(name: str, prediction_type: str, xl: bool) -> None:
    parts, seed = parts_of(prediction_type, xl=xl), fresh_seed()
    family = parts.family()
    pipeline = pipeline_of(parts, "Pipeline", family, name)
    job = Job(
        "a red fox",
        noise(seed, 8, 12),
        negative=random.Random(seed).choice(["blue", "a long list of things"]),
        scheduler=name,
        num_steps=4,
        guidance=random.Random(seed).choice([1.0, 2.0, 7.5]),
        generator=torch.Generator().manual_seed(seed),
    )
    # Pipelines pass 0 to every scheduler; TCD's own default is 0.3.
    eta = 0.3 if name == "tcd" else 0.0
    theirs = their_latents(pipeline, job, seed, **from_noise(job), eta=eta)
    ours = draw(family, job)
    case = (name, prediction_type, seed, job.guidance)
    assert_same(ours, theirs, case)
    assert_same_picture(family, pipeline, ours, case)


@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 1.0},
        {"guidance": 3.0, "rescale": 0.7},
        {"guidance": 12.0, "rescale": 0.7},
        {"clip_skip": 1, "guidance": 1.0},
        {"clip_skip": 2, "negative": "rain"},
        {"prompt": ""},
        {"prompt": "x", "num_steps": 1},
    ],
)
def test_options(options: dict[str, Any]) -> None:
    parts, seed = parts_of(), fresh_seed()
    family = parts.family()
    job = Job(**({"prompt": "two cats", "latents": noise(seed, 4, 12)} | options))
    theirs = their_latents(
        parts.pipeline(diffusers.StableDiffusionPipeline),
        job,
        seed,
        **from_noise(job),
        guidance_rescale=job.rescale,
        clip_skip=job.clip_skip or None,
    )
    assert_same(draw(family, job), theirs, (options, seed))


@pytest.mark.parametrize(
    ("xl", "name"),
    [(False, name) for name in ("ddim", "euler", "dpmpp_2m_karras", "pndm", "heun")]
    + [(True, name) for name in ("ddim", "euler", "dpmpp_2m")],
)
def test_image_to_image(name: str, xl: bool) -> None:
    parts, seed = parts_of(xl=xl), fresh_seed()
    family = parts.family()
    pipeline = pipeline_of(parts, "Img2ImgPipeline", family, name)
    image = picture(seed, 16, 24)
    fields = {"negative": "rain", "scheduler": name, "num_steps": 5, "guidance": 4.0}
    job = redrawing(family, image, 0.6, seed, prompt="a hat", **fields)
    theirs = their_latents(pipeline, job, seed, image=image, strength=0.6)
    assert_same(draw(family, job), theirs, (name, seed))


@pytest.mark.parametrize(
    ("xl", "name"),
    [
        (False, "ddim"),
        (False, "euler_ancestral"),
        (False, "dpmpp_2m"),
        (False, "unipc"),
        (True, "euler"),
    ],
)
def test_inpainting_unet(name: str, xl: bool) -> None:
    parts, seed = parts_of(in_channels=9, xl=xl), fresh_seed()
    family = parts.family()
    pipeline = pipeline_of(parts, "InpaintPipeline", family, name)
    image, mask = picture(seed), torch.zeros((1, 1, 16, 16))
    # Whole latent cells: on others diffusers drops what it does not sample, and we do not.
    mask[..., 4:12, 6:14] = 1.0
    generator = torch.Generator().manual_seed(seed)
    condition = family.image_condition(ImageTask.INPAINT, image, mask, generator)
    assert condition.shape == (1, 5, 8, 8)
    job = Job(
        "a door",
        noise(seed),
        negative="wood",
        task=ImageTask.INPAINT,
        scheduler=name,
        guidance=6.0,
        image_latents=condition,
        generator=generator,
    )
    inputs = {"image": image, "mask_image": mask, "strength": 1.0}
    theirs = their_latents(pipeline, job, seed, **from_noise(job), **inputs)
    assert_same(draw(family, job), theirs, (name, seed))


def test_a_thin_mask_reaches_the_latents() -> None:
    family = parts_of(in_channels=9).family()
    mask = torch.zeros((1, 1, 16, 16))
    mask[..., 5, :] = 1.0
    generator = torch.Generator().manual_seed(1)
    condition = family.image_condition(ImageTask.INPAINT, picture(1), mask, generator)
    assert condition[0, 0].sum(dim=1).tolist() == [0, 0, 8, 0, 0, 0, 0, 0]
    with pytest.raises(InvalidParameter, match="send a mask"):
        family.image_condition(ImageTask.INPAINT, picture(1), None, generator)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpmpp_2m", "lms"])
def test_instruct_pix2pix(name: str, prediction_type: str) -> None:
    parts, seed = parts_of(prediction_type, in_channels=8), fresh_seed()
    family = parts.family()
    assert family.facts.tasks == (ImageTask.EDIT,)
    pipeline = pipeline_of(parts, "InstructPix2PixPipeline", family, name)
    image, generator = picture(seed), torch.Generator().manual_seed(seed)
    job = Job(
        "make it blue",
        noise(seed),
        negative="red",
        task=ImageTask.EDIT,
        scheduler=name,
        guidance=5.0,
        image_guidance=1.4,
        image_latents=family.image_condition(ImageTask.EDIT, image, None, generator),
        generator=generator,
    )
    # Its image inputs are in [-1, 1]; it scales what looks like [0, 1].
    inputs = {"image": image, "image_guidance_scale": job.image_guidance}
    theirs = their_latents(pipeline, job, seed, latents=noise(seed), **inputs)
    assert_same(draw(family, job), theirs, (name, prediction_type, seed))


def test_an_extra_unet_edits() -> None:
    parts = copy.copy(parts_of())
    parts.extra_unets = {"unet_edit": parts_of(in_channels=8).unet}
    family = parts.family()
    assert set(family.facts.tasks) == set(ImageTask) - {ImageTask.UPSCALE}
    assert family.denoiser_key(ImageTask.EDIT) != family.denoiser_key(ImageTask.INPAINT)
    generator = torch.Generator()
    assert family.image_condition(ImageTask.INPAINT, picture(1), None, generator) is None
    edited = family.image_condition(ImageTask.EDIT, picture(1), None, generator)
    alone = copy.copy(parts_of())
    alone.unet = parts.extra_unets["unet_edit"]
    job = Job("x", noise(3), task=ImageTask.EDIT, image_latents=edited)
    torch.testing.assert_close(draw(family, job), draw(alone.family(), job))
    parts.extra_unets = {"unet_edit": parts.unet}
    words = "unet_edit has 4 input channels; it must have 8"
    with pytest.raises(UnsupportedArchitecture, match=words):
        parts.family()


def test_an_extra_unet_inpaints() -> None:
    parts = copy.copy(parts_of())
    parts.extra_unets = {"unet_inpaint": parts_of(in_channels=9).unet}
    family = parts.family()
    assert family.denoiser_key(ImageTask.INPAINT) == "unet_inpaint"
    assert family.denoiser_key(ImageTask.IMAGE_TO_IMAGE) == "unet"
    condition = family.image_condition(
        ImageTask.INPAINT, picture(1), torch.ones((1, 1, 16, 16)), torch.Generator()
    )
    job = Job("x", noise(1), task=ImageTask.INPAINT, image_latents=condition)
    assert draw(family, job).isfinite().all()


def test_rows_of_different_prompt_lengths_are_masked() -> None:
    short, long = torch.ones((1, 2, 3)), torch.ones((1, 5, 3))
    states, mask = stack_states([short, long])
    assert states.shape == (2, 5, 3)
    assert states[0, 2:].abs().max() == 0
    assert mask.tolist() == [[True, True, False, False, False], [True] * 5]
    assert stack_states([short, short])[1] is None


def test_facts() -> None:
    family = parts_of().family(defaults={"num_inference_steps": 9, "guidance_scale": 4, "size": 48})
    facts, denoising = family.facts, family.facts.denoising
    assert (denoising.default_steps, denoising.default_guidance_scale) == (9, 4.0)
    assert (facts.default_width, facts.size_multiple, facts.min_side) == (48, 2, 4)
    assert facts.max_pixels == 4 * 48 * 48
    assert denoising.schedulers[0] == "ddim"
    assert set(denoising.schedulers) == set(DIFFUSION_SCHEDULES)
    with pytest.raises(InvalidParameter, match="does not support edit"):
        family.denoiser_key(ImageTask.EDIT)


def test_odd_sizes_and_results_that_may_be_written_to() -> None:
    family = parts_of().family()
    for height, width in ((2, 2), (3, 5), (7, 16)):
        latents = draw(family, Job("x", noise(1, height, width), num_steps=2))
        assert latents.shape == (1, 4, height, width)
        latents.mul_(2)
        picture = family.decode(latents)
        assert picture.shape == (1, 3, height * FACTOR, width * FACTOR)
        assert picture.abs().max() <= 1
        assert torch.equal(family.preview(latents), picture)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    parts = copy.deepcopy(parts_of())
    exact = draw(parts.family(), Job("a cat", noise(5)))
    for module in (parts.unet, parts.vae, parts.text_encoder):
        module.to(dtype)
    family = parts.family()
    rough = draw(family, Job("a cat", noise(5)))
    assert rough.dtype == family.decode(rough).dtype == torch.float32
    assert np.allclose(rough, exact, atol=0.25), (rough - exact).abs().max()


def test_refuses_parts_that_do_not_fit() -> None:
    parts = copy.copy(parts_of())
    for unet, words in (
        (tiny_unet(xl=True), "24 channels and the text encoder makes 16"),
        (tiny_unet(7), "maps 7 to 4"),
    ):
        parts.unet = unet
        with pytest.raises(UnsupportedArchitecture, match=words):
            parts.family()
