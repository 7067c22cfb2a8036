"""Stable Diffusion's upscaler against diffusers' pipeline over the same tiny random weights."""

import copy
import random
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionUpscalePipeline

from engine.contract.draw import ImageTask
from engine.diffusion.drawing import Drawing
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families.stable_diffusion_upscale import StableDiffusionUpscaleFamily
from engine.errors import CorruptFile, UnsupportedArchitecture
from engine.pictures.arrays import array_of
from engine.pictures.tensors import to_signed
from tests.helpers.diffusion.denoise_loop import assert_same
from tests.helpers.diffusion.engine_runs import advance, drawn_by
from tests.helpers.diffusion.tiny_families import load_folder
from tests.helpers.diffusion.tiny_pipelines import Parts, tiny_unet
from tests.helpers.diffusion.tiny_upscaler import (
    SCALE,
    low_res_scheduler,
    upscaler_of,
    upscaler_parts,
)
from tests.helpers.diffusion.toy_family import picture, request
from tests.helpers.json_files import edit_json

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
def test_it_draws_what_diffusers_draws(family, pipeline, scheduler, guidance, noise_level):
    seed = random.randrange(1 << 31)
    width, height = 4 * random.randint(1, 5), 4 * random.randint(1, 5)
    settings = {"scheduler": scheduler, "guidance_scale": guidance, "noise_level": noise_level}
    drawing = drawing_of(family, width, height, seed, negative_prompt="wood", **settings)
    image = to_signed(array_of(picture(width, height, seed)))
    inputs = {"image": image, "noise_level": noise_level}
    case = (scheduler, guidance, noise_level, width, height, seed)
    ours = advance(drawing).final()
    assert ours.shape == (1, 4, height, width)
    assert_same(ours, drawn_by(pipeline, drawing, **inputs), case)
    image = drawn_by(pipeline, drawing, output_type="pt", **inputs)
    answer = drawing.stage.result()()
    assert (answer.width, answer.height) == (SCALE * width, SCALE * height)
    # Rounding may go the other way.
    assert (to_signed(array_of(answer)) / 2 + 0.5 - image).abs().max() < 1 / 255, case


def test_the_level_of_noise_reaches_image_and_denoiser(family):
    low, high = (
        advance(drawing_of(family, 8, 8, 5, noise_level=level)).final() for level in (0, 50)
    )
    assert (low - high).abs().max() > 0.05
    drawings = [drawing_of(family, 8, 8, 5, noise_level=7) for _ in range(2)]
    drawings[1].stage.noise_level = 50
    assert (advance(drawings[0]).final() - advance(drawings[1]).final()).abs().max() > 1e-3


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 9), (7, 3), (13, 5)])
def test_odd_sizes(family: StableDiffusionUpscaleFamily, width: int, height: int) -> None:
    drawing = drawing_of(family, width, height, 3)
    advance(drawing).final()
    answer = drawing.stage.result()()
    assert (answer.width, answer.height) == (SCALE * width, SCALE * height)


def test_facts(family: StableDiffusionUpscaleFamily) -> None:
    facts = family.facts
    assert facts.tasks == (ImageTask.UPSCALE,)
    assert (facts.upscaling.scale, facts.vae_factor) == (SCALE, SCALE)
    assert (facts.upscaling.default_noise_level, facts.upscaling.max_noise_level) == (20, 60)
    assert (facts.denoising.default_steps, facts.denoising.default_guidance_scale) == (75, 9.0)


def test_levels_end_where_the_model_knows_no_more(parts: Parts) -> None:
    parts = copy.copy(parts)
    parts.unet = tiny_unet(7, num_class_embeds=10)
    upscaling = upscaler_of(parts).facts.upscaling
    assert (upscaling.default_noise_level, upscaling.max_noise_level) == (9, 9)


def test_a_folder_is_loaded(family, pipeline, tmp_path):
    """The folder's VAE config does not say its scale, as in published folders."""
    pipeline.save_pretrained(tmp_path)
    edit_json(tmp_path / "vae/config.json", {}, without="scaling_factor")
    loaded = load_folder(tmp_path)
    assert loaded.facts == family.facts
    ours, theirs = (drawing_of(each, 8, 4, 9) for each in (loaded, family))
    assert_same(advance(ours).final(), advance(theirs).final(), "loaded")
    assert ours.stage.result()() == theirs.stage.result()()
    edit_json(tmp_path / "model_index.json", {"max_noise_level": "high"})
    with pytest.raises(CorruptFile, match="max_noise_level"):
        load_folder(tmp_path)


def test_refuses_a_unet_that_is_no_upscalers(parts: Parts) -> None:
    for unet in (tiny_unet(7), tiny_unet(4)):
        changed = copy.copy(parts)
        changed.unet = unet
        with pytest.raises(UnsupportedArchitecture, match="7 channels and a level"):
            upscaler_of(changed)
