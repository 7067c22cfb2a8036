"""Which module of a denoiser gives a row other bits beside others, if one does.

Rows go through each family's denoiser alone and in company of several sizes, and what each module
makes of a row is compared in the order in which they run: the first that differs is named. Beside
it, that no operation of our own leaves rows to a library, which may give the same bits on one
processor by luck and not on another.
"""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import Timesteps
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from engine.contract.draw import ImageTask
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.families import products
from engine.diffusion.families.family import Row
from engine.diffusion.families.fused_layers import FusedResnetBlock
from kernels import native
from kernels.registry import Op
from tests.helpers.diffusion.tiny_families import FAMILIES, UPSCALER, family_of, parts_of
from tests.helpers.diffusion.toy_family import picture
from tests.helpers.diffusion.toy_family import request as toy_request

pytestmark = [
    pytest.mark.skipif(native.missing() is not None, reason="no C++ operations"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

COMPANIES = (2, 3, random.choice([8, 16]))
KINDS = (*FAMILIES, UPSCALER)
Outputs = list[tuple[nn.Module, torch.Tensor]]


@pytest.fixture(params=["small", "large"])
def weights(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which products the layers have: our own of small weights, the library's of large ones."""
    if request.param == "large":
        monkeypatch.setattr(products, "MOST_BYTES", -1)


@pytest.mark.usefixtures("weights")
@pytest.mark.parametrize("kind", KINDS)
def test_no_module_gives_a_row_other_bits_in_company(kind: str) -> None:
    family, key, rows = denoiser_and_rows(kind)
    assert first_difference(family, key, rows) is None


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_leaves_several_rows_to_a_library(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, key, rows = denoiser_and_rows(kind)
    chosen: dict[str, set[str]] = {}
    whole = Op.__call__

    def noting(op: Op[..., Any], *args: Any, **kwargs: Any) -> Any:
        chosen.setdefault(op.name, set()).add(op.choice(*args, **kwargs)[0])
        return whole(op, *args, **kwargs)

    monkeypatch.setattr(Op, "__call__", noting)
    with torch.inference_mode():
        family.denoise(key, rows)
    assert set().union(*chosen.values()) <= {"cpu"}, chosen


def test_a_module_whose_rows_meet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = FusedResnetBlock.forward

    def leaky(self: Any, *inputs: torch.Tensor) -> torch.Tensor:
        found = whole(self, *inputs)
        return found + 1e-6 * found.mean(0, keepdim=True)

    family, key, rows = denoiser_and_rows("sdxl")
    monkeypatch.setattr(FusedResnetBlock, "forward", leaky)
    assert first_difference(family, key, rows) == "down_blocks.0.resnets.0 among 2"


def denoiser_and_rows(kind: str) -> tuple[Any, Any, list[Row]]:
    """A family of random weights, and rows of one shape for one of its denoisers."""
    family = family_of(kind, parts_of(kind, random.randrange(1000)))
    side = 4 * random.choice([2, 4, 6])
    draws = ImageTask.TEXT_TO_IMAGE in family.facts.tasks
    task = ImageTask.TEXT_TO_IMAGE if draws else ImageTask.UPSCALE
    scale = 1 if draws else family.facts.upscaling.scale
    factory = DrawingFactory(family)
    rows = []
    for place in range(max(COMPANIES)):
        asked = toy_request(
            # A prompt for each, or keys and values would be kept from call to call.
            prompt=f"picture {place}",
            task=task,
            image=None if draws else picture(side, side, place),
            noise_level=0 if draws else random.choice([0, 20, 50]),
            width=scale * side,
            height=scale * side,
            num_inference_steps=random.choice([2, 3, 4]),
            guidance_scale=1.0,
            seed=random.randrange(1 << 40),
        )
        [drawing] = factory.create(asked)
        rows += drawing.stage.rows()
    return family, family.denoiser_key(task), rows


def first_difference(family: Any, key: Any, rows: Sequence[Row]) -> str | None:
    """The first module with other bits for a row in company, and in how much."""
    alone = [outputs(family, key, [row]) for row in rows]
    for size in COMPANIES:
        chosen = random.sample(range(len(rows)), size)
        together = outputs(family, key, [rows[place] for place in chosen])
        found = differing(together, [alone[place] for place in chosen])
        if found is not None:
            return f"{name_in(family, key, found)} among {size}"
    return None


def outputs(family: Any, key: Any, rows: Sequence[Row]) -> Outputs:
    """What the modules make in one call, in the order in which they end."""
    made: Outputs = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        # Waves are made once for each timestep and kept.
        if isinstance(found, torch.Tensor) and type(module) is not Timesteps:
            made.append((module, found.clone()))

    handle = register_module_forward_hook(note)
    try:
        with torch.inference_mode():
            family.denoise(key, rows)
    finally:
        handle.remove()
    return made


def differing(together: Outputs, alone: Sequence[Outputs]) -> nn.Module | None:
    """The first module that made other bits of a row; those of a call for each row follow each
    other."""
    shared = len(together) == len(alone[0])
    for place, (module, found) in enumerate(together):
        if shared:
            expected = [made[place][1] for made in alone]
        else:
            row, place_in_row = divmod(place, len(alone[0]))
            expected = [alone[row][place_in_row][1]]
        if not torch.equal(found, torch.cat(expected)):
            return module
    return None


def name_in(family: Any, key: Any, module: nn.Module) -> str:
    """Give a module's dotted name in the denoiser."""
    denoiser = family._unets[key] if hasattr(family, "_unets") else family._transformer
    return next(name for name, one in denoiser.named_modules() if one is module)
