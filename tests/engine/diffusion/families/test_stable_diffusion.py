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
from tests.helpers.diffusion.denoise_loop import Job, assert_same, draw, draw_together
from tests.helpers.diffusion.tiny_pipelines import (
    FACTOR,
    Parts,
    fresh_seed,
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


def pipeline_of(parts: Parts, task: str, xl: bool) -> Any:
    return parts.pipeline(getattr(diffusers, f"StableDiffusion{'XL' * xl}{task}Pipeline"))


def assert_same_picture(family: Any, pipeline: Any, latents: torch.Tensor, case: object) -> None:
    """Decoded as the pipeline decodes, in [0, 1]."""
    unscaled = latents / pipeline.vae.config.scaling_factor
    theirs = (pipeline.vae.decode(unscaled).sample / 2 + 0.5).clamp(0, 1)
    assert_same(family.decode(latents) / 2 + 0.5, theirs, case)


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
    pipeline = pipeline_of(parts, "", xl)
    use(pipeline, family, name)
    job = Job(
        "a red fox",
        noise(seed, 8, 12),
        negative=random.Random(seed).choice(["blue", "a long list of things"]),
        scheduler=name,
        num_steps=4,
        guidance=random.Random(seed).choice([1.0, 2.0, 7.5]),
        generator=torch.Generator().manual_seed(seed),
    )
    theirs = pipeline(
        prompt=job.prompt,
        negative_prompt=job.negative,
        latents=job.latents.clone(),
        height=16,
        width=24,
        num_inference_steps=4,
        guidance_scale=job.guidance,
        # Pipelines pass 0 to every scheduler; TCD's own default is 0.3.
        eta=0.3 if name == "tcd" else 0.0,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images
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
    theirs = parts.pipeline(diffusers.StableDiffusionPipeline)(
        prompt=job.prompt,
        negative_prompt=job.negative,
        latents=job.latents.clone(),
        num_inference_steps=job.num_steps,
        guidance_scale=job.guidance,
        guidance_rescale=job.rescale,
        clip_skip=job.clip_skip or None,
        height=8,
        width=24,
        output_type="latent",
    ).images
    assert_same(draw(family, job), theirs, (options, seed))


@pytest.mark.parametrize(
    ("xl", "name"),
    [(False, name) for name in ("ddim", "euler", "dpmpp_2m_karras", "pndm", "heun")]
    + [(True, name) for name in ("ddim", "euler", "dpmpp_2m")],
)
def test_image_to_image(name: str, xl: bool) -> None:
    parts, seed = parts_of(xl=xl), fresh_seed()
    family = parts.family()
    pipeline = pipeline_of(parts, "Img2Img", xl)
    use(pipeline, family, name)
    image = picture(seed, 16, 24)
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
    job = Job(
        "a hat",
        latents,
        negative="rain",
        guidance=4.0,
        start=start,
        schedule=schedule,
        generator=generator,
    )
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
    pipeline = pipeline_of(parts, "Inpaint", xl)
    use(pipeline, family, name)
    image, mask = picture(seed), torch.zeros((1, 1, 16, 16))
    # Whole latent cells: on others diffusers drops what it does not sample, and we do not.
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
    generator = torch.Generator().manual_seed(seed)
    condition = family.image_condition(ImageTask.INPAINT, image, mask, generator)
    assert condition is not None
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
    assert_same(draw(family, job), theirs, (name, seed))


def test_a_thin_mask_reaches_the_latents() -> None:
    family = parts_of(in_channels=9).family()
    mask = torch.zeros((1, 1, 16, 16))
    mask[..., 5, :] = 1.0
    condition = family.image_condition(
        ImageTask.INPAINT, picture(1), mask, torch.Generator().manual_seed(1)
    )
    assert condition is not None
    assert condition[0, 0].sum(dim=1).tolist() == [0, 0, 8, 0, 0, 0, 0, 0]
    with pytest.raises(InvalidParameter, match="send a mask"):
        family.image_condition(ImageTask.INPAINT, picture(1), None, torch.Generator())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", ["ddim", "euler_ancestral", "dpmpp_2m", "lms"])
def test_instruct_pix2pix(name: str, prediction_type: str) -> None:
    parts, seed = parts_of(prediction_type, in_channels=8), fresh_seed()
    family = parts.family()
    assert family.facts.tasks == (ImageTask.EDIT,)
    pipeline = parts.pipeline(diffusers.StableDiffusionInstructPix2PixPipeline)
    use(pipeline, family, name)
    image = picture(seed)
    # Its image inputs are in [-1, 1]; it scales what looks like [0, 1].
    theirs = pipeline(
        prompt="make it blue",
        negative_prompt="red",
        image=image,
        latents=noise(seed),
        num_inference_steps=3,
        guidance_scale=5.0,
        image_guidance_scale=1.4,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images
    generator = torch.Generator().manual_seed(seed)
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
    assert edited is not None
    alone = copy.copy(parts_of())
    alone.unet = parts.extra_unets["unet_edit"]
    job = Job("x", noise(3), task=ImageTask.EDIT, image_latents=edited)
    torch.testing.assert_close(draw(family, job), draw(alone.family(), job))
    parts.extra_unets = {"unet_edit": parts.unet}
    with pytest.raises(
        UnsupportedArchitecture, match=r"unet_edit has 4 input channels; it must have 8"
    ):
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
    assert condition is not None
    assert (
        draw(family, Job("x", noise(1), task=ImageTask.INPAINT, image_latents=condition))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("xl", [False, True])
def test_a_batch_equals_its_rows_one_by_one(xl: bool) -> None:
    seed = fresh_seed()
    choose = random.Random(seed)
    family = parts_of("epsilon" if xl else "v_prediction", xl=xl).family()
    long_prompt = "so many words about boats " * 5

    def jobs() -> list[Job]:
        choose.seed(seed)
        return [
            Job(
                choose.choice(["a cat", "", long_prompt, f"job {index}"]),
                noise(seed + index),
                negative=choose.choice(["", "fog", long_prompt]),
                scheduler=choose.choice(list(DIFFUSION_SCHEDULES)),
                num_steps=choose.randint(2, 6),
                guidance=choose.choice([1.0, 3.0, 8.0]),
                generator=torch.Generator().manual_seed(seed + index),
            )
            for index in range(6)
        ]

    joins = [choose.randint(0, 4) for _ in range(6)]
    together = draw_together(family, jobs(), joins)
    for index, job in enumerate(jobs()):
        assert_same(together[index], draw(family, job), (seed, index, job))


def test_rows_of_different_prompt_lengths_are_masked() -> None:
    short, long = torch.ones((1, 2, 3)), torch.ones((1, 5, 3))
    states, mask = stack_states([short, long])
    assert states.shape == (2, 5, 3)
    assert states[0, 2:].abs().max() == 0
    assert mask is not None
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
    with pytest.raises(InvalidParameter, match="does not do edit"):
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
