"""Stable Diffusion's upscaler against diffusers' pipeline over the same tiny random weights."""

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline

from engine.contract.draw import ImageTask
from engine.diffusion.drawing import Drawing
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families.registry import load_family
from engine.diffusion.families.stable_diffusion_upscale import StableDiffusionUpscaleFamily
from engine.errors import CorruptFile, UnsupportedArchitecture
from engine.pictures.arrays import array_of
from engine.pictures.tensors import to_signed
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.denoise_loop import Job, assert_same, draw_together
from tests.helpers.diffusion.engine_runs import advance
from tests.helpers.diffusion.tiny_pipelines import CPU, Parts, tiny_unet
from tests.helpers.diffusion.tiny_upscaler import (
    SCALE,
    low_res_scheduler,
    upscaler_of,
    upscaler_parts,
)
from tests.helpers.diffusion.toy_family import picture, request

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
    # What it is given is in [-1, 1], as it is asked to be.
    pytest.mark.filterwarnings("ignore:Passing `image` as torch tensor:FutureWarning"),
]


@pytest.fixture(scope="module")
def parts() -> Parts:
    torch.set_num_threads(1)
    return upscaler_parts()


@pytest.fixture
def pipeline(parts: Parts) -> StableDiffusionUpscalePipeline:
    pipeline = StableDiffusionUpscalePipeline(
        vae=copy.deepcopy(parts.vae),
        text_encoder=parts.text_encoder,
        tokenizer=parts.tokenizer,
        unet=copy.deepcopy(parts.unet),
        low_res_scheduler=low_res_scheduler(),
        scheduler=copy.deepcopy(parts.scheduler),
        max_noise_level=60,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def family(parts: Parts) -> StableDiffusionUpscaleFamily:
    return upscaler_of(parts)


def drawing_of(family: Any, width: int, height: int, seed: int, **changes: Any) -> Drawing:
    options = {
        "task": ImageTask.UPSCALE,
        "image": picture(width, height, seed),
        "width": SCALE * width,
        "height": SCALE * height,
        "seed": seed,
        "num_inference_steps": 3,
        "noise_level": 20,
    }
    (drawing,) = DrawingFactory(family).create(request(prompt="a door", **(options | changes)))
    return drawing


@pytest.mark.parametrize(
    ("scheduler", "guidance", "noise_level"),
    [("ddim", 9.0, 20), ("euler_ancestral", 4.0, 0), ("dpmpp_2m", 1.0, 60)],
)
def test_it_draws_what_diffusers_draws(
    family: StableDiffusionUpscaleFamily,
    pipeline: StableDiffusionUpscalePipeline,
    scheduler: str,
    guidance: float,
    noise_level: int,
) -> None:
    seed = random.randrange(1 << 31)
    width, height = 4 * random.randint(1, 5), 4 * random.randint(1, 5)
    drawing = drawing_of(
        family,
        width,
        height,
        seed,
        scheduler=scheduler,
        guidance_scale=guidance,
        noise_level=noise_level,
        negative_prompt="wood",
    )
    schedule = drawing.stage.schedule._scheduler
    pipeline.scheduler = type(schedule).from_config(schedule.config)
    options = {
        "prompt": "a door",
        "negative_prompt": "wood",
        "image": to_signed(array_of(picture(width, height, seed))),
        "num_inference_steps": 3,
        "guidance_scale": guidance,
        "noise_level": noise_level,
    }
    theirs = pipeline(
        **options, generator=torch.Generator().manual_seed(seed), output_type="latent"
    ).images
    case = (scheduler, guidance, noise_level, width, height, seed)
    ours = advance(drawing).final()
    assert ours.shape == (1, 4, height, width)
    assert_same(ours, theirs, case)
    image = pipeline(
        **options, generator=torch.Generator().manual_seed(seed), output_type="pt"
    ).images
    answer = drawing.stage.result()()
    assert (answer.width, answer.height) == (SCALE * width, SCALE * height)
    # Rounding may go the other way.
    assert (to_signed(array_of(answer)) / 2 + 0.5 - image).abs().max() < 1 / 255, case


def test_the_level_of_noise_reaches_image_and_denoiser(
    family: StableDiffusionUpscaleFamily,
) -> None:
    low, high = (
        advance(drawing_of(family, 8, 8, 5, noise_level=level)).final() for level in (0, 50)
    )
    assert (low - high).abs().max() > 0.05
    drawings = [drawing_of(family, 8, 8, 5, noise_level=7) for _ in range(2)]
    drawings[1].stage.noise_level = 50
    assert (advance(drawings[0]).final() - advance(drawings[1]).final()).abs().max() > 1e-3


def test_a_batch_equals_its_rows_one_by_one(family: StableDiffusionUpscaleFamily) -> None:
    """Prompts of different lengths too, which layers without a mask must not share."""
    long_prompt = "so many words about boats " * 5
    seed = random.randrange(1 << 31)

    def jobs() -> list[Job]:
        made = []
        for index, prompt in enumerate(["a cat", long_prompt, "", long_prompt]):
            generator = torch.Generator().manual_seed(seed + index)
            image = torch.rand((1, 3, 8, 8), generator=generator) * 2 - 1
            made.append(
                Job(
                    prompt,
                    torch.randn((1, 4, 8, 8), generator=generator),
                    task=ImageTask.UPSCALE,
                    image_latents=image,
                )
            )
        return made

    together = draw_together(family, jobs(), [0, 1, 0, 2])
    for index, job in enumerate(jobs()):
        assert_same(together[index], draw_together(family, [job], [0])[0], (seed, index))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (7, 3), (13, 5)])
def test_odd_sizes(family: StableDiffusionUpscaleFamily, width: int, height: int) -> None:
    drawing = drawing_of(family, width, height, 3)
    advance(drawing).final()
    answer = drawing.stage.result()()
    assert (answer.width, answer.height) == (SCALE * width, SCALE * height)


def test_facts(family: StableDiffusionUpscaleFamily) -> None:
    facts = family.facts
    assert facts.tasks == (ImageTask.UPSCALE,)
    assert facts.upscaling is not None
    assert (facts.upscaling.scale, facts.vae_factor) == (SCALE, SCALE)
    assert (facts.upscaling.default_noise_level, facts.upscaling.max_noise_level) == (20, 60)
    assert (facts.denoising.default_steps, facts.denoising.default_guidance_scale) == (75, 9.0)


def test_levels_end_where_the_model_knows_no_more(parts: Parts) -> None:
    parts = copy.copy(parts)
    parts.unet = tiny_unet(7, num_class_embeds=10)
    upscaling = upscaler_of(parts).facts.upscaling
    assert upscaling is not None
    assert (upscaling.default_noise_level, upscaling.max_noise_level) == (9, 9)


def test_a_folder_is_loaded(
    family: StableDiffusionUpscaleFamily,
    pipeline: StableDiffusionUpscalePipeline,
    tmp_path: Path,
) -> None:
    """The folder's VAE config does not say its scale, as in published folders."""
    pipeline.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "vae/config.json").read_text())
    del config["scaling_factor"]
    (tmp_path / "vae/config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint("diffusers", tmp_path, "x")
    loaded = load_family(checkpoint, dtype=torch.float32, device=CPU)
    assert loaded.facts == family.facts
    ours, theirs = (drawing_of(each, 8, 4, 9) for each in (loaded, family))
    assert_same(advance(ours).final(), advance(theirs).final(), "loaded")
    assert ours.stage.result()() == theirs.stage.result()()
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"max_noise_level": "high"}))
    with pytest.raises(CorruptFile, match="max_noise_level"):
        load_family(checkpoint, dtype=torch.float32, device=CPU)


def test_refuses_a_unet_that_is_no_upscalers(parts: Parts) -> None:
    for unet in (tiny_unet(7), tiny_unet(4)):
        changed = copy.copy(parts)
        changed.unet = unet
        with pytest.raises(UnsupportedArchitecture, match="7 channels and a level"):
            upscaler_of(changed)
