"""What a model family must offer so that the engine can draw with it.

A family owns weights and nothing of a request: prompt states, latents, noise and the place in
the noise schedule belong to `engine.diffusion.denoising.Denoising`. All latents outside a family
are unpacked, `[N, C, H, W]`, fp32, scaled to the space the denoiser works in.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.image_types import DenoisingFacts, ImageTask, UpscalingFacts
from engine.lora.images.layers import AdaptedLayers, Uses

if TYPE_CHECKING:
    # It imports diffusers, which takes seconds and is not needed to name a family.
    from engine.diffusion.noise_schedule import NoiseSchedule


_RESTORED_AREAS = 16
"""Largest picture that is redrawn in tiles, in areas of the model's own size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFacts:
    """What requests are checked against; becomes the model's `ImageModelInfo`."""

    architecture: str
    tasks: tuple[ImageTask, ...]
    denoising: DenoisingFacts
    latent_channels: int
    vae_factor: int
    """Pixels per latent cell, on a side."""
    size_multiple: int
    default_width: int
    default_height: int
    min_side: int
    max_pixels: int
    image_free_at_full_strength: tuple[ImageTask, ...] = ()
    """Tasks that at strength 1 take nothing of the input image into the latents: the denoiser sees
    it beside them. Nothing is drawn for it then, as in diffusers' pipelines."""
    does_one_edit: bool = False
    """Whether an instruction may ask for one edit only."""
    upscaling: UpscalingFacts | None = None
    """Of a family that does UPSCALE: its latents then have a cell for each pixel of the input."""

    @property
    def max_restored_pixels(self) -> int:
        """Of RESTORE."""
        return _RESTORED_AREAS * self.default_width * self.default_height


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One row of a denoiser call: an image in one of its guidance branches.

    Attributes:
        latents: `[1, C, h, w]`, already scaled for the model by the noise schedule.
        timestep: scalar tensor, as the noise schedule gives it.
        prompt: of this branch.
        image_latents: `[1, K, h, w]` beside the latents: InstructPix2Pix's image (zeros in the
            unconditional branch), mask and masked image of an inpainting model, the reference of
            Kontext.
        guidance_scale: for models that take it as an input.
        width, height: of the picture in pixels, for families with size conditioning.
        noise_level: of the image beside the latents, for families that take it as an input.
        adapters: that the denoiser has for it, by their keys.
    """

    latents: torch.Tensor
    timestep: torch.Tensor
    prompt: PromptStates
    image_latents: torch.Tensor | None = None
    guidance_scale: float = 1.0
    width: int = 0
    height: int = 0
    noise_level: int = 0
    adapters: Uses = ()


class Family(Protocol):
    """All methods run without gradients on the engine's thread, `decode` on any thread.

    Attributes:
        adapted: the layers of denoisers and text encoders, which `encode_prompts` and `denoise`
            tell whose adapters their rows have.
    """

    facts: FamilyFacts
    device: torch.device
    adapted: AdaptedLayers

    def encode_prompts(self, prompts: Sequence[PromptText]) -> list[PromptStates]:
        """States of each prompt, in order. They do not depend on which prompts come together."""
        ...

    def encode_image(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Pixels `[1, 3, H, W]` in [-1, 1] to scaled latents `[1, C, H/f, W/f]`.

        Draws from the posterior with `generator` (on the CPU), as diffusers' pipelines do; without
        one, takes its mode.
        """
        ...

    def image_condition(
        self,
        task: ImageTask,
        image: torch.Tensor,
        mask: torch.Tensor | None,
        generator: torch.Generator,
        *,
        noise_level: int = 0,
    ) -> torch.Tensor | None:
        """The `image_latents` of conditional rows, or None where the denoiser takes none.

        Args:
            image: `[1, 3, H, W]` in [-1, 1].
            mask: `[1, 1, H, W]` in {0, 1}, 1 where to redraw.
            noise_level: for families that noise the image, of UPSCALE.
        """
        ...

    def denoiser_key(self, task: ImageTask) -> Hashable:
        """Which weights a task runs on: rows of equal key and shape may share a call."""
        ...

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> "NoiseSchedule":
        """A schedule of its own for one image, its timesteps set."""
        ...

    def denoise(self, key: Hashable, rows: Sequence[Row]) -> torch.Tensor:
        """One call over rows of one `denoiser_key` and latent shape.

        Returns raw predictions `[R, C, h, w]`, fp32. Prompts may differ in length. Where
        `row_layouts.is_exact`, a row's have the same bits whatever the others are.
        """
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents `[N, C, h, w]` to pixels `[N, 3, H, W]`, fp32 in [-1, 1], clipped."""
        ...

    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """The same, cheap and rough, of any resolution: for pictures of unfinished latents."""
        ...
