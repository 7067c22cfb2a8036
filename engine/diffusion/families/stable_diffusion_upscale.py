"""Stable Diffusion's upscaler, which enlarges the sides of an image four times.

Its UNet sees the small image beside the latents, a pixel per cell, with some noise, and the level
of that noise. More noise lets it invent more. It works like diffusers'
`StableDiffusionUpscalePipeline`; the model is described at
stabilityai/stable-diffusion-x4-upscaler.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel

from engine.contract.draw import ImageTask, UpscalingFacts
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.family import FamilyFacts, Row
from engine.diffusion.families.row_layouts import denoise_by_layout
from engine.diffusion.families.stable_diffusion import StableDiffusionFamily, prompt_length
from engine.diffusion.families.unet_tasks import BASE
from engine.errors import CorruptFile, UnsupportedArchitecture

_IMAGE_CHANNELS = 3
_MAX_NOISE_LEVEL = 350
_NOISE_LEVEL = 20
_LATENT_SCALE = 0.08333
"""The scale of its VAE's latents, as in diffusers' pipeline; published configs lack it."""


class StableDiffusionUpscaleFamily(StableDiffusionFamily):
    """A `StableDiffusionFamily` with a noised image beside the latents and the level of its noise.

    Args:
        low_res_scheduler_config: the config of the noise schedule in which levels count.
        max_noise_level: the highest level on which the model was trained.
    """

    architecture: ClassVar[str] = "stable-diffusion-upscale"
    guidance_scale: ClassVar[float] = 9.0
    num_steps: ClassVar[int] = 75
    area_factor: ClassVar[int] = 16

    def __init__(
        self,
        *,
        low_res_scheduler_config: Mapping[str, Any],
        max_noise_level: int = _MAX_NOISE_LEVEL,
        **parts: Any,
    ) -> None:
        schedule = DDPMScheduler.from_config(dict(low_res_scheduler_config))
        self._kept: torch.Tensor = schedule.alphas_cumprod.float()
        self._max_noise_level = max_noise_level
        super().__init__(**parts)

    @classmethod
    def unets_by_task(cls, unets: Mapping[str, UNet2DConditionModel]) -> dict[ImageTask, str]:
        """The single UNet for the single task.

        Raises:
            UnsupportedArchitecture: the UNet is of another kind.
        """
        config = unets[BASE].config
        expected = config.out_channels + _IMAGE_CHANNELS
        if config.in_channels != expected or not config.num_class_embeds:
            raise UnsupportedArchitecture(
                f"the UNet takes {config.in_channels} channels and {config.num_class_embeds or 0} "
                f"levels of noise; an upscaler's must take {expected} channels and a level"
            )
        return {ImageTask.UPSCALE: BASE}

    @classmethod
    def options_of(cls, folder: ComponentFolder) -> dict[str, Any]:
        """The schedule of the image's noise, and its highest level.

        Raises:
            CorruptFile: the level is not a number.
        """
        highest = folder.index.get("max_noise_level", _MAX_NOISE_LEVEL)
        if not isinstance(highest, int) or highest < 0:
            raise CorruptFile("max_noise_level of model_index.json must be a number of 0 or more")
        return {
            "low_res_scheduler_config": folder.config("low_res_scheduler", "scheduler_config.json"),
            "max_noise_level": highest,
        }

    @classmethod
    def autoencoder_of(cls, folder: ComponentFolder) -> Autoencoder:
        """The VAE of a folder, with the scale on which the UNet was trained."""
        return folder.autoencoder(scaling_factor=_LATENT_SCALE)

    @classmethod
    def corrected(cls, scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
        """The config unchanged, as published ones are correct."""
        return dict(scheduler_config)

    def image_condition(
        self,
        task: ImageTask,
        image: torch.Tensor,
        mask: torch.Tensor | None,
        generator: torch.Generator,
        *,
        noise_level: int = 0,
    ) -> torch.Tensor:
        """The small image with noise: `[1, 3, h, w]`, fp32."""
        noise = torch.randn(image.shape, generator=generator).to(image.device)
        kept = float(self._kept[noise_level])
        return math.sqrt(kept) * image + math.sqrt(1 - kept) * noise

    def denoise(self, key: Hashable, rows: Sequence[Row]) -> torch.Tensor:
        """Run one UNet call for each prompt length among the rows.

        In some of its layers, where others have self-attention, it attends to prompts without a
        mask.
        """
        return denoise_by_layout(rows, prompt_length, partial(super().denoise, key))

    def _conditions(self, rows: Sequence[Row]) -> dict[str, Any]:
        levels = [row.noise_level for row in rows]
        return {"class_labels": torch.tensor(levels, device=self.device)}

    def _facts(self, defaults: dict[str, Any]) -> FamilyFacts:
        known = min(len(self._kept), int(self._unets[BASE].config.num_class_embeds)) - 1
        highest = min(self._max_noise_level, known)
        facts = super()._facts(defaults)
        return replace(
            facts,
            upscaling=UpscalingFacts(
                scale=facts.vae_factor,
                default_noise_level=min(_NOISE_LEVEL, highest),
                max_noise_level=highest,
            ),
        )
