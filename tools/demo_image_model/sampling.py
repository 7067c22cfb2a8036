"""Draws the pictures for the evaluation from a saved folder, with diffusers' own pipelines.

Only the model makes the pixels. Each picture has its own generator, so a batch changes no picture's
noise.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

BATCH = 32
EDIT_UNET = "unet_edit"
"""Subfolder of the editing UNet, beside `unet`."""


class Sampler:
    """Draws pictures from text, in fp32."""

    def __init__(self, folder: Path, *, size: int) -> None:
        self.size = size
        self._pipeline = _load(StableDiffusionPipeline, folder)

    def draw(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance: float,
        steps: int,
        negatives: Sequence[str] | None = None,
    ) -> np.ndarray:
        """Draw a picture for each of one or more prompts and seeds, `[N, size, size, 3]` uint8."""
        latents = self.denoise(prompts, seeds, guidance=guidance, steps=steps, negatives=negatives)
        return decode(self._pipeline.vae, latents)

    def denoise(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance: float,
        steps: int,
        negatives: Sequence[str] | None = None,
    ) -> torch.Tensor:
        """Unscaled latents of the same pictures, `[N, 4, size / 8, size / 8]` fp32."""
        latents = []
        for rows in batches(len(prompts)):
            output = self._pipeline(
                list(prompts[rows]),
                negative_prompt=None if negatives is None else list(negatives[rows]),
                height=self.size,
                width=self.size,
                guidance_scale=guidance,
                num_inference_steps=steps,
                generator=_generators(seeds[rows]),
                output_type="latent",
            )
            latents.append(output.images.float())
        return torch.cat(latents) / self._pipeline.vae.config.scaling_factor


class EditSampler:
    """Edits pictures by instructions, in fp32, with the folder's `unet_edit`."""

    def __init__(self, folder: Path, *, unet: Path | None = None) -> None:
        """Load the folder; `unet` is another folder for the editing UNet."""
        weights = unet if unet is not None else folder / EDIT_UNET
        load: Any = UNet2DConditionModel.from_pretrained
        self._pipeline = _load(
            StableDiffusionInstructPix2PixPipeline,
            folder,
            unet=load(weights, torch_dtype=torch.float32),
        )

    def draw(
        self,
        sources: np.ndarray,
        instructions: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance: float,
        image_guidance: float,
        steps: int,
    ) -> np.ndarray:
        """Edit `sources` (at least one); both are `[N, size, size, 3]` uint8."""
        latents = self.denoise(
            sources,
            instructions,
            seeds,
            guidance=guidance,
            image_guidance=image_guidance,
            steps=steps,
        )
        return decode(self._pipeline.vae, latents)

    def denoise(
        self,
        sources: np.ndarray,
        instructions: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance: float,
        image_guidance: float,
        steps: int,
    ) -> torch.Tensor:
        """Unscaled latents of the edited pictures, `[N, 4, size / 8, size / 8]` fp32."""
        latents = []
        for rows in batches(len(instructions)):
            output = self._pipeline(
                list(instructions[rows]),
                image=torch.from_numpy(sources[rows]).permute(0, 3, 1, 2) / 255,
                guidance_scale=guidance,
                image_guidance_scale=image_guidance,
                num_inference_steps=steps,
                generator=_generators(seeds[rows]),
                output_type="latent",
            )
            latents.append(output.images.float())
        return torch.cat(latents) / self._pipeline.vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Any, latents: torch.Tensor) -> np.ndarray:
    """Pictures of unscaled latents, `[N, height, width, 3]` uint8; at least one."""
    pictures = []
    for rows in batches(len(latents)):
        decoded = vae.decode(latents[rows]).sample.float()
        pictures.append(to_uint8((decoded.permute(0, 2, 3, 1).numpy() + 1) / 2))
    return np.concatenate(pictures)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Convert pictures from [0, 1] to uint8."""
    return (images * 255).round().clip(0, 255).astype(np.uint8)


def _load(pipeline: Any, folder: Path, **parts: Any) -> Any:
    loaded = pipeline.from_pretrained(
        folder, torch_dtype=torch.float32, safety_checker=None, **parts
    )
    loaded.set_progress_bar_config(disable=True)
    loaded.unet.to(memory_format=torch.channels_last)
    loaded.vae.to(memory_format=torch.channels_last)
    return loaded


def batches(count: int) -> Iterator[slice]:
    """The rows of each batch of `count` pictures."""
    for start in range(0, count, BATCH):
        yield slice(start, min(start + BATCH, count))


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
