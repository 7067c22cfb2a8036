"""What families share whose only denoiser is a transformer."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from diffusers import ModelMixin

from engine.contract.draw import ImageTask
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.cpu_calls import CpuCalls
from engine.diffusion.families.family import FamilyFacts, Row
from engine.diffusion.families.row_layouts import denoise_by_layout, denoise_each, is_exact
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.errors import InvalidParameter, UnsupportedArchitecture
from engine.lora.images.layers import AdaptedLayers


class TransformerFamily(ABC):
    """A family with one transformer for all tasks. A subclass sets `adapted` and `facts`.

    Args:
        dtype: the type of weights and activations.
    """

    adapted: AdaptedLayers
    facts: FamilyFacts

    def __init__(
        self,
        transformer: ModelMixin,
        autoencoder: Autoencoder,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.device = device
        self._dtype = dtype
        self._transformer = transformer.eval()
        self._autoencoder = autoencoder
        self._one_by_one = is_exact(device, dtype)

    def encode_image(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Encode pixels `[1, 3, H, W]` in [-1, 1] as scaled latents."""
        return self._autoencoder.encode(image, generator)

    def image_condition(
        self,
        task: ImageTask,
        image: torch.Tensor,
        mask: torch.Tensor | None,
        generator: torch.Generator,
        *,
        noise_level: int = 0,
    ) -> torch.Tensor | None:
        """None, as the transformer sees no image in the channels of the latents."""
        return None

    def denoiser_key(self, task: ImageTask) -> Hashable:
        """A single key, as one transformer serves all tasks."""
        return "image"

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[PromptText]) -> list[PromptStates]:
        """The states of each prompt, computed one by one, with its adapters."""
        found = []
        for prompt in prompts:
            with self.adapted.rows([prompt.adapters]), CpuCalls():
                found.append(self._encode(prompt))
        return found

    @torch.no_grad()
    def denoise(self, key: Hashable, rows: Sequence[Row]) -> torch.Tensor:
        """Predict `[R, C, h, w]`, fp32. Timesteps and prompts may differ."""
        with CpuCalls():
            if self._one_by_one:
                return denoise_each(rows, self._forward)
            return denoise_by_layout(rows, self._layout, self._forward)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents `[N, C, h, w]` to pixels `[N, 3, H, W]`, fp32 in [-1, 1]."""
        return self._autoencoder.decode(latents)

    def preview(self, latents: torch.Tensor) -> torch.Tensor:
        """A rough picture with one pixel per latent cell."""
        return self._autoencoder.preview(latents)

    def _layout(self, row: Row) -> Hashable:
        """A key: rows with equal keys can share a pass."""
        references = tuple(reference.shape for reference in row.references)
        return tuple(row.prompt.states.shape), references

    @abstractmethod
    def _encode(self, prompt: PromptText) -> PromptStates:
        """The states of a prompt."""

    @abstractmethod
    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        """The predictions for rows of one layout."""


def check_channels(config: Any, autoencoder: Autoencoder, name: str) -> None:
    """Refuse a transformer that takes other latents than the VAE makes.

    Raises:
        UnsupportedArchitecture: names the channels of both.
    """
    if config.in_channels != autoencoder.channels:
        raise UnsupportedArchitecture(
            f"the transformer takes {config.in_channels} channels and the VAE makes "
            f"{autoencoder.channels}; only plain {name} checkpoints are supported"
        )


def check_sides(width: int, height: int, most: int) -> None:
    """Refuse a picture for which the model has no positions.

    Raises:
        InvalidParameter: a side is longer than that.
    """
    if max(width, height) > most:
        raise InvalidParameter(
            f"size is {width}x{height}; this model draws at most {most} pixels a side",
            param="size",
        )
