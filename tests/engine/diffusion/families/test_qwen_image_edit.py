"""Qwen-Image-Edit against diffusers' pipelines, on tiny random components."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline, QwenImagePipeline
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as edit_plus
from PIL import Image

from engine.contract.draw import ImageTask
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families.flux import pack
from engine.diffusion.prompt.text import PromptImage, PromptText
from engine.pictures.arrays import array_of
from tests.helpers.diffusion.engine_runs import take_step
from tests.helpers.diffusion.tiny_families import load_folder
from tests.helpers.diffusion.tiny_language import (
    VISION_MARKS,
    QwenImageParts,
    image_processor,
    qwen_image_parts,
)
from tests.helpers.diffusion.tiny_transformers import FACTOR, assert_drawn, draw_with, pipeline_of
from tests.helpers.diffusion.toy_family import picture
from tests.helpers.diffusion.toy_family import request as toy_request
from tests.helpers.json_files import edit_json

WIDTH, HEIGHT, STEPS, SCALE, SIDE = 48, 32, 3, 4.0, 64
PROMPT, NEGATIVE = "make the circle red", "blurry"


@pytest.fixture(autouse=True)
def small_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' pipelines see images of `SIDE` by `SIDE` pixels, as ours here do."""
    whole = edit.calculate_dimensions
    monkeypatch.setattr(edit, "calculate_dimensions", lambda _, ratio: whole(SIDE**2, ratio))
    monkeypatch.setattr(edit_plus, "CONDITION_IMAGE_SIZE", SIDE**2)
    monkeypatch.setattr(edit_plus, "VAE_IMAGE_SIZE", SIDE**2)


def oracle(parts: QwenImageParts, kind: Any) -> Any:
    """diffusers' pipeline; transformers 5 needs the places of images for its positions."""
    parts = copy.deepcopy(parts)
    whole = parts.text_encoder.forward
    image = parts.tokenizer.convert_tokens_to_ids(VISION_MARKS["image"])

    def forward(input_ids: torch.Tensor, **inputs: Any) -> Any:
        places = (input_ids == image).int()
        return whole(input_ids=input_ids, mm_token_type_ids=places, **inputs)

    parts.text_encoder.forward = forward
    return pipeline_of(parts, kind, processor=image_processor())


def family_in(folder: Path, parts: QwenImageParts, kind: Any) -> Any:
    """Load our family from files."""
    pipeline_of(parts, kind, processor=image_processor()).save_pretrained(folder)
    edit_json(folder / "model_index.json", {"_defaults": {"size": SIDE}})
    return load_folder(folder)


def requested(images: list[Any], seed: int, **changes: Any) -> Any:
    settings = {
        "width": WIDTH,
        "height": HEIGHT,
        "num_inference_steps": STEPS,
        "guidance_scale": SCALE,
        "negative_prompt": NEGATIVE,
        "seed": seed,
        **changes,
    }
    made = toy_request(prompt=PROMPT, task=ImageTask.EDIT, **settings)
    made.images[:] = images
    return made


@torch.inference_mode()
def draw(family: Any, request: Any) -> list[torch.Tensor]:
    drawings = DrawingFactory(family).create(request)
    while not drawings[0].finished:
        take_step(*(drawing.stage for drawing in drawings))
    return [drawing.stage.final() for drawing in drawings]


def theirs_of(pipeline: Any, images: Any, seed: int, scale: float) -> Any:
    noise = torch.randn(
        (1, 16, HEIGHT // FACTOR, WIDTH // FACTOR), generator=torch.Generator().manual_seed(seed)
    )
    tokens, drawn = draw_with(
        pipeline,
        image=images,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        true_cfg_scale=scale,
        num_inference_steps=STEPS,
        latents=pack(noise),
        height=HEIGHT,
        width=WIDTH,
    )
    return QwenImagePipeline._unpack_latents(tokens, HEIGHT, WIDTH, FACTOR)[:, :, 0], drawn


@pytest.mark.parametrize("scale", [1.0, SCALE])
@pytest.mark.parametrize("sides", [[(40, 72)], [(64, 64), (90, 30)]])
@pytest.mark.parametrize("clean_times", [False, True])
def test_combined_images_equal_diffusers(
    scale: float, sides: list[tuple[int, int]], clean_times: bool, tmp_path: Path
) -> None:
    seed = random.randrange(2**31)
    parts = qwen_image_parts(seed, {"zero_cond_t": clean_times})
    images = [picture(*side, place) for place, side in enumerate(sides)]
    kind = QwenImageEditPlusPipeline
    family = family_in(tmp_path, parts, kind)
    [ours] = draw(family, requested(images, seed, guidance_scale=scale))
    pictures = [Image.fromarray(array_of(image)) for image in images]
    assert_drawn(family, ours, *theirs_of(oracle(parts, kind), pictures, seed, scale), seed)


def test_images_edited_one_by_one_equal_diffusers(tmp_path: Path) -> None:
    seed = random.randrange(2**31)
    parts = qwen_image_parts(seed)
    images = [picture(72, 40, 1), picture(40, 72, 2)]
    family = family_in(tmp_path, parts, QwenImageEditPipeline)
    found = draw(family, requested(images, seed, n=2))
    pipeline = oracle(parts, QwenImageEditPipeline)
    for place, (ours, image) in enumerate(zip(found, images, strict=True)):
        one = Image.fromarray(array_of(image))
        theirs = theirs_of(pipeline, one, seed + place, SCALE)
        assert_drawn(family, ours, *theirs, seed)


def test_marks_of_images_are_removed_from_instructions(tmp_path: Path) -> None:
    family = family_in(tmp_path, qwen_image_parts(1), QwenImageEditPlusPipeline)
    factory = DrawingFactory(family)
    [one] = factory.create(requested([picture(64, 64)], 1))
    images = one.stage.preparation.prompt_images
    texts = ("a b", "a<|image_pad|> b", "a " * 900)
    asked = [PromptText(text=text, images=images) for text in texts]
    asked.append(PromptText(text="a b", images=(PromptImage(64, 64, bytes(3 * 64 * 64)),)))
    plain, marked, long, dark = family.encode_prompts(asked)
    assert torch.equal(plain.states, marked.states)
    assert (plain.states - dark.states).abs().max() > 1e-3, "the image has an effect"
    assert (plain.num_tokens, plain.warnings) == (3, ())
    assert "its end has no effect" in long.warnings[0]
    assert family.facts.tasks == (ImageTask.EDIT,)
