"""The start of an image: its noise schedule, first noise, and input image in latent space.

Each image has one CPU generator seeded with seed + index, and draws from it in diffusers' order:
the posterior of the input image if the latents need it, the first noise, the posterior of the image
beside the latents, then what the noise schedule needs. Upscaling draws the noise of the image
beside the latents before the first noise.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.contract.draw import ImageParams, ImageTask, UpscaleParams
from engine.diffusion.families.family import Family
from engine.diffusion.tasks.prepare import Preparation
from engine.pictures.tiles import Tiling

if TYPE_CHECKING:
    # Imported only for types: it imports diffusers, which takes seconds.
    from engine.diffusion.noise_schedule import NoiseSchedule


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawingStart:
    """A drawing before its first step. Latents are [1, C, H, W]."""

    generator: torch.Generator
    """The source of noise that the schedule still draws."""
    schedule: "NoiseSchedule"
    timestep_index: int
    """The index of the first step."""
    latents: Tensor
    noise: Tensor
    """The first noise; `latents` contain as much of it as the first step needs."""
    clean: Tensor | None
    """The input image's latents, if the drawing starts from them or keeps them outside a mask."""
    condition: Tensor | None
    """What the denoiser sees beside the latents, in tasks that have it."""
    tiling: Tiling | None
    """The tiles of an image that is redrawn in tiles."""


def start_of(
    family: Family,
    params: ImageParams,
    preparation: Preparation,
    seed: int,
    *,
    clean: Tensor | None = None,
) -> DrawingStart:
    """Draw the start of an image.

    Args:
        seed: the image's own seed.
        clean: latents that replace an input image; its posterior is then not drawn.
    """
    generator = torch.Generator("cpu").manual_seed(seed % (1 << 64))  # torch takes no other seeds
    tiling = _tiling(family, preparation) if params.task is ImageTask.RESTORE else None
    schedule = _schedule(family, params, preparation, tiling)
    if clean is None:
        clean = _clean(family, params, preparation, generator)
    upscales = params.task is ImageTask.UPSCALE
    condition = _condition(family, params, preparation, generator) if upscales else None
    noise = _noise(family, preparation, generator)
    first = 0
    latents = noise * schedule.init_noise_sigma
    if params.share < 1.0 and (clean is not None or tiling is not None):
        first = schedule.start_of(params.share, params.num_inference_steps)
        latents = latents if clean is None else schedule.noised(clean, noise, first)
    if not upscales:
        condition = _condition(family, params, preparation, generator)
    return DrawingStart(
        generator=generator,
        schedule=schedule,
        timestep_index=first,
        latents=latents,
        noise=noise,
        clean=clean,
        condition=condition,
        tiling=tiling,
    )


def _tiling(family: Family, preparation: Preparation) -> Tiling:
    """Divide the latents into tiles of the size that the model draws best."""
    facts = family.facts
    sides = (
        preparation.height,
        preparation.width,
        facts.default_height,
        facts.default_width,
        facts.size_multiple,
    )
    return Tiling.planned(*(side // facts.vae_factor for side in sides))


def _schedule(
    family: Family, params: ImageParams, preparation: Preparation, tiling: Tiling | None
) -> "NoiseSchedule":
    """The schedule for the size that the denoiser sees at once."""
    height, width = preparation.height, preparation.width
    if tiling is not None:
        height, width = (side * family.facts.vae_factor for side in tiling.tile_size)
    return family.new_noise_schedule(params.scheduler, params.num_inference_steps, width, height)


def _clean(
    family: Family, params: ImageParams, preparation: Preparation, generator: torch.Generator
) -> Tensor | None:
    if not _needs_input(family, params):
        return None
    assert preparation.image is not None
    return family.encode_image(preparation.image.to(family.device), generator)


def _needs_input(family: Family, params: ImageParams) -> bool:
    """Whether the input's latents are needed, as a start or to be kept outside the mask."""
    if params.share >= 1.0 and params.task in family.facts.image_free_at_full_strength:
        return False
    return params.task in (ImageTask.IMAGE_TO_IMAGE, ImageTask.INPAINT)


def _noise(family: Family, preparation: Preparation, generator: torch.Generator) -> Tensor:
    facts = family.facts
    shape = (
        1,
        facts.latent_channels,
        preparation.height // facts.vae_factor,
        preparation.width // facts.vae_factor,
    )
    return torch.randn(shape, generator=generator).to(family.device)


def _condition(
    family: Family, params: ImageParams, preparation: Preparation, generator: torch.Generator
) -> Tensor | None:
    if preparation.image is None:
        return None
    device, mask = family.device, preparation.mask
    return family.image_condition(
        params.task,
        preparation.image.to(device),
        None if mask is None else (mask > 0.5).float().to(device),
        generator,
        noise_level=params.noise_level if isinstance(params, UpscaleParams) else 0,
    )
