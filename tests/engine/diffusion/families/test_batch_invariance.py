"""Latents have the same bits alone and among others in every family, in fp32 on a CPU."""

import random
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from engine.contract.draw import EditParams, ImageParams, ImageTask
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families.quantized import quantize
from engine.diffusion.families.registry import load_family
from engine.diffusion.families.stable_diffusion import StableDiffusionFamily
from kernels import native
from tests.helpers.diffusion.engine_runs import take_step
from tests.helpers.diffusion.tiny_families import CPU, FAMILIES, UPSCALER, family_of, parts_of
from tests.helpers.diffusion.toy_family import mask, picture
from tests.helpers.diffusion.toy_family import request as toy_request
from tests.helpers.named_models import named_model

pytestmark = [
    pytest.mark.skipif(native.missing() is not None, reason="no C++ operations"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SIDE = 16
PROMPTS = ("a red fox", "", "rain", "a " * 100)
"""The last is longer than a text encoder reads at once."""
TASKS = (ImageTask.TEXT_TO_IMAGE, ImageTask.IMAGE_TO_IMAGE, ImageTask.INPAINT, ImageTask.UPSCALE)


def requests(family: Any, side: int = SIDE) -> list[Any]:
    """One of each way to share a call, and others: their first steps differ, too."""
    tasks = [task for task in TASKS if task in family.facts.tasks]
    scale = family.facts.upscaling.scale if ImageTask.UPSCALE in tasks else 1
    made = []
    for place in range(7):
        task = tasks[place % len(tasks)]
        made.append(
            toy_request(
                f"r{place}",
                prompt=PROMPTS[place % len(PROMPTS)],
                image=picture(side, side, place) if task is not ImageTask.TEXT_TO_IMAGE else None,
                mask=mask(side, side, (4, 4, 11, 13)) if task is ImageTask.INPAINT else None,
                task=task,
                width=scale * side,
                height=scale * side,
                num_inference_steps=random.choice([2, 3, 4]),
                seed=random.randrange(1 << 40),
                guidance_scale=random.choice([1.0, 3.0, 7.5]),
                guidance_end=random.choice([1.0, 0.5]),
                negative_prompt=random.choice(["", "blue"]),
                strength=0.7,
                noise_level=random.choice([0, 20, 50]) if ImageTask.UPSCALE in tasks else 0,
                num_previews=place % 2,
            )
        )
    return made


@torch.inference_mode()
def drawn(family: Any, *asked: Any) -> list[list[torch.Tensor]]:
    """Give each image's latents after every step, in calls that it shares with all others."""
    factory = DrawingFactory(family)
    drawings = [drawing for one in asked for drawing in factory.create(one)]
    found: list[list[torch.Tensor]] = [[] for _ in drawings]
    while stages := [drawing.stage for drawing in drawings if not drawing.finished]:
        take_step(*stages)
        for seen, drawing in zip(found, drawings, strict=True):
            if drawing.stage in stages:
                seen.append(drawing.stage.final().clone())
    return found


def check(family: Any, asked: list[Any]) -> None:
    together = drawn(family, *asked)
    for one, found in zip(asked, together, strict=True):
        [alone] = drawn(family, one)
        assert len(found) == len(alone)
        assert all(map(torch.equal, found, alone)), (one.request_id, one.params)


@pytest.mark.parametrize("kind", (*FAMILIES, UPSCALER))
def test_company_changes_no_bit(kind: str) -> None:
    family = family_of(kind, parts_of(kind, random.randrange(1000)))
    check(family, requests(family))


@pytest.mark.parametrize("kind", ["flux", "flux2", "qwen_image"])
def test_company_of_edits(kind: str) -> None:
    """References of several sizes, in several numbers if the model combines them, beside text to
    image."""
    family = family_of(kind, parts_of(kind, random.randrange(1000)), edits=True)
    limits = {"sizes": (), "max_pixels": 3 * SIDE * SIDE, "min_side": 1}
    references = replace(family.facts.references, **limits)
    redraws = ImageTask.IMAGE_TO_IMAGE in family.facts.tasks
    tasks = family.facts.tasks if redraws else (ImageTask.IMAGE_TO_IMAGE,)
    family.facts = replace(family.facts, references=references, tasks=tasks)
    most = min(3, references.max_images)
    check(family, [as_edit(one, most) if one.images else one for one in requests(family)])


def as_edit(one: Any, max_images: int) -> Any:
    """The same request as an edit of random images."""
    shared = {each.name: getattr(one.params, each.name) for each in fields(ImageParams)}
    sides = [random.choice([SIDE, 2 * SIDE]) for _ in range(random.randint(1, max_images))]
    images = [picture(side, SIDE, place) for place, side in enumerate(sides)]
    return replace(one, params=EditParams(**shared), images=images, mask=None)


@pytest.mark.parametrize("kind", [*FAMILIES, UPSCALER])
def test_threads_change_no_bit_of_a_picture(kind: str) -> None:
    """The decoder takes more threads while the denoiser has nothing to do."""
    seed = random.randrange(1 << 31)
    family = family_of(kind, parts_of(kind, seed))
    torch.manual_seed(seed)
    sides = random.choices(range(2, 40), k=2)
    latents = torch.randn(1, family.facts.latent_channels, *(2 * side for side in sides))
    before, pictures = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            pictures.append(family.decode(latents))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, pictures[0]) for one in pictures), f"{seed=} {sides=}"


def test_quantised_unets() -> None:
    parts = parts_of("sd", random.randrange(1000))
    quantize(parts.unet, "bnb-nf4", dtype=torch.float32, device=CPU)
    family = parts.family()
    check(family, requests(family))


def test_the_check_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one image leaves in another is seen."""
    whole = StableDiffusionFamily.denoise

    def leaky(self: Any, key: Any, rows: Any) -> torch.Tensor:
        found = whole(self, key, rows)
        return found + 1e-6 * found.mean(0, keepdim=True)

    monkeypatch.setattr(StableDiffusionFamily, "denoise", leaky)
    family = family_of("sd", parts_of("sd", random.randrange(1000)))
    with pytest.raises(AssertionError, match="r0"):
        check(family, requests(family))


def test_the_built_in_model() -> None:
    family = load_family(named_model("tandem-shapes"), dtype=torch.float32, device=CPU)
    check(family, requests(family, 64))
