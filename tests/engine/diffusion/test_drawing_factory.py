"""A request's seed draws what diffusers' pipelines draw with it."""

import random
from typing import Any

import diffusers
import pytest
import torch

from engine.contract.draw import ImageTask, PromptSyntax
from engine.diffusion import prompt_cache
from engine.diffusion.drawing import Drawing
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.prompt.text import PromptText
from engine.diffusion.prompt_cache import PromptCache
from tests.helpers.diffusion.engine_runs import advance, drawn_by, take_step
from tests.helpers.diffusion.tiny_pipelines import Parts, tiny_parts
from tests.helpers.diffusion.toy_family import ToyFamily, mask, picture, request

SIDE = 16
TOLERANCE = 1e-4
"""fp32 over a few steps; sums are taken in another order with channels last."""

pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")


def spread_posterior(parts: Parts) -> Parts:
    """Give the posterior a deviation of about one. With random weights it is nearly a point."""
    bias = parts.vae.quant_conv.bias
    bias.data[len(bias) // 2 :] = 0.0
    weight = parts.vae.quant_conv.weight
    weight.data[len(weight) // 2 :] *= 0.1
    return parts


def create(family: Any, **changes: Any) -> Drawing:
    options = {"width": SIDE, "height": SIDE, "num_inference_steps": 4, **changes}
    options |= {"guidance_scale": 3.0, "negative_prompt": "wood", "scheduler": "euler_ancestral"}
    (drawing,) = DrawingFactory(family).create(request(prompt="a door", **options))
    return drawing


def check(parts: Parts, kind: str, drawing: Drawing, **inputs: Any) -> None:
    """Compare the final latents with those of diffusers' pipeline."""
    pipeline = parts.pipeline(getattr(diffusers, kind))
    ours = advance(drawing).final()
    theirs = drawn_by(pipeline, drawing, width=SIDE, height=SIDE, **inputs)
    worst = (ours - theirs).abs().max().item()
    assert worst < TOLERANCE, (drawing.seed, worst)


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("xl", [False, True])
def test_an_inpainting_unet_draws_in_diffusers_order(xl: bool, strength: float) -> None:
    parts = spread_posterior(tiny_parts(3, in_channels=9, xl=xl))
    drawing = create(
        parts.family(),
        image=picture(SIDE, SIDE),
        mask=mask(SIDE, SIDE, (4, 4, 12, 14)),
        task=ImageTask.INPAINT,
        seed=random.randrange(1 << 31),
        strength=strength,
    )
    seen = drawing.stage.preparation
    inputs = {"image": seen.image, "mask_image": seen.mask, "strength": strength}
    check(parts, f"StableDiffusion{'XL' * xl}InpaintPipeline", drawing, **inputs)


@pytest.mark.parametrize("xl", [False, True])
def test_layers_are_skipped_for_the_prompt_alone(xl: bool) -> None:
    parts = tiny_parts(4, xl=xl)
    drawing = create(parts.family(), seed=random.randrange(1 << 31), clip_skip=1)
    check(parts, f"StableDiffusion{'XL' * xl}Pipeline", drawing, clip_skip=1)


def test_a_prompt_that_is_edited_says_in_each_step_what_it_says_then() -> None:
    family = ToyFamily()
    options = {"prompt_syntax": PromptSyntax.A1111, "num_inference_steps": 8, "scheduler": "euler"}
    whole = {"image": picture(), "task": ImageTask.IMAGE_TO_IMAGE, "strength": 0.5}
    for inputs, changes in (({}, 4), (whole, 2)):
        edited = request(prompt="a [cat:dog:0.5]", negative_prompt="[x|y]", **options, **inputs)
        (drawing,) = DrawingFactory(family).create(edited)
        said = []
        while not drawing.finished:
            unwanted, wanted = (row.prompt.key.text for row in drawing.stage.rows())
            said.append((wanted, unwanted))
            take_step(drawing.stage)
        cats, dogs = ["a cat"] * changes, ["a dog"] * changes
        assert said == list(zip(cats + dogs, ["x", "y"] * changes, strict=True))
    assert len(family.encoded) == 8, "each text once a request"


def test_the_posterior_is_drawn_from() -> None:
    """Otherwise the tests above could not see in which order it is drawn."""
    family = spread_posterior(tiny_parts(3)).family()
    image = torch.zeros((1, 3, SIDE, SIDE))
    first, second = (family.encode_image(image, torch.Generator().manual_seed(s)) for s in (1, 2))
    assert (first - second).abs().mean() > 0.1


def test_the_cache_of_prompts_is_limited_by_the_numbers_of_its_states(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    family = ToyFamily()
    cache = PromptCache(family)
    texts = [PromptText(text=letter) for letter in "abc"]
    [states] = cache.encode(texts[:1])
    monkeypatch.setattr(prompt_cache, "MOST_NUMBERS", 2 * states.states.numel())
    cache.encode(texts)
    family.encoded.clear()
    cache.encode(texts[1:])
    assert family.encoded == [], "the newest are kept"
    cache.encode(texts[:1])
    assert family.encoded == texts[:1]
