"""The interface of a model family, with which the engine draws.

A family owns weights and no part of a request: prompt states, latents, noise and the position in
the noise schedule belong to `engine.diffusion.denoising.Denoising`. All latents outside a family
are unpacked, `[N, C, H, W]`, fp32, and scaled to the space in which the denoiser works.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from engine.contract.draw import DenoisingFacts, ImageTask, UpscalingFacts
from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.lora.images.layers import AdaptedLayers, Uses

if TYPE_CHECKING:
    # Imported only for types: it imports diffusers, which takes seconds.
    from engine.diffusion.noise_schedule import NoiseSchedule


GENERAL_TASKS = (
    ImageTask.TEXT_TO_IMAGE,
    ImageTask.IMAGE_TO_IMAGE,
    ImageTask.INPAINT,
    ImageTask.RESTORE,
)
"""What any denoiser of plain latents does."""
_RESTORED_AREAS = 16
"""The largest picture redrawn in tiles, as a multiple of the model's own area."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FamilyFacts:
    """The facts against which requests are checked; they become the model's `ImageModelInfo`."""

    architecture: str
    tasks: tuple[ImageTask, ...]
    denoising: DenoisingFacts
    latent_channels: int
    vae_factor: int
    """The pixels per latent cell, on a side."""
    size_multiple: int
    default_width: int
    default_height: int
    min_side: int
    max_pixels: int
    image_free_at_full_strength: tuple[ImageTask, ...] = ()
    """Tasks that at strength 1 put nothing of the input image into the latents, because the
    denoiser sees it beside them. As in diffusers' pipelines, no random numbers are then drawn for
    it."""
    guidance_patch: int = 0
    """The side, in latent cells, of the patches to which guidance leaves the norms of the
    conditional prediction, as Qwen-Image does; 0: it leaves none."""
    does_one_edit: bool = False
    """Whether an instruction may ask for only one edit."""
    upscaling: UpscalingFacts | None = None
    """The facts for UPSCALE, if the family does it; its latents have a cell for each input
    pixel."""
    references: ReferenceFacts | None = None
    """The facts for EDIT, if the denoiser sees the input images at sizes of their own."""

    @property
    def max_restored_pixels(self) -> int:
        """The most pixels of a RESTORE result."""
        return _RESTORED_AREAS * self.default_width * self.default_height


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One row of a denoiser call: an image in one of its guidance branches.

    Attributes:
        latents: `[1, C, h, w]`, already scaled for the model by the noise schedule.
        timestep: the noise schedule's timestep, a scalar tensor.
        prompt: the states of this branch's prompt.
        image_latents: `[1, K, h, w]` beside the latents: InstructPix2Pix's image (zeros in the
            unconditional branch), or an inpainting model's mask and masked image.
        references: the latents of each reference image, `[1, C, h', w']` of any size.
        guidance_scale: the scale, for models that take it as an input.
        width, height: the picture's size in pixels, for families with size conditioning.
        noise_level: the noise of the image beside the latents, for families that take it as an
            input.
        adapters: the keys of the adapters that the denoiser uses for it.
    """

    latents: torch.Tensor
    timestep: torch.Tensor
    prompt: PromptStates
    image_latents: torch.Tensor | None = None
    references: tuple[torch.Tensor, ...] = ()
    guidance_scale: float = 1.0
    width: int = 0
    height: int = 0
    noise_level: int = 0
    adapters: Uses = ()


class Family(Protocol):
    """A model's weights and what they compute. All methods run without gradients on the engine's
    thread, `decode` on any thread.

    Attributes:
        adapted: the layers of denoisers and text encoders with adapters; `encode_prompts` and
            `denoise` tell them the adapters of their rows.
    """

    facts: FamilyFacts
    device: torch.device
    adapted: AdaptedLayers

    def encode_prompts(self, prompts: Sequence[PromptText]) -> list[PromptStates]:
        """The states of each prompt, in order. They do not depend on the other prompts of the
        call."""
        ...

    def encode_image(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Encode pixels `[1, 3, H, W]` in [-1, 1] as scaled latents `[1, C, H/f, W/f]`.

        Draws from the posterior with `generator` (on the CPU), like diffusers' pipelines; without
        one it takes the mode.
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
        """The `image_latents` of conditional rows; None if the denoiser takes none.

        Args:
            image: `[1, 3, H, W]` in [-1, 1].
            mask: `[1, 1, H, W]` in {0, 1}, 1 where to redraw.
            noise_level: the noise to add to the image, in families that do so for UPSCALE.
        """
        ...

    def denoiser_key(self, task: ImageTask) -> Hashable:
        """A key for the weights that a task uses: rows of equal key and shape may share a call."""
        ...

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> "NoiseSchedule":
        """A new schedule for one image, with its timesteps set."""
        ...

    def denoise(self, key: Hashable, rows: Sequence[Row]) -> torch.Tensor:
        """Run one call over rows of one `denoiser_key` and latent shape.

        Returns raw predictions `[R, C, h, w]`, fp32. Prompts may differ in length. If
        `row_layouts.is_exact`, a row's predictions have the same bits in any batch.
        """
        ...

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents `[N, C, h, w]` to pixels `[N, 3, H, W]`, fp32, clipped to [-1,
        1]."""
        ...

    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """A cheap, rough picture of unfinished latents, at any resolution."""
        ...
