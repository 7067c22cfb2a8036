"""Stable Diffusion XL: two CLIP text encoders side by side, a pooled state, and picture sizes.

Paper: Podell et al. 2023, arXiv:2307.01952.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.family import Row
from engine.diffusion.families.stable_diffusion import StableDiffusionFamily
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedArchitecture


class StableDiffusionXLFamily(StableDiffusionFamily):
    """A `StableDiffusionFamily` with two text encoders and size conditioning.

    Args:
        zeros_for_empty: whether the empty prompt's states are zeros, as in the base model's
            training (`force_zeros_for_empty_prompt`).
    """

    architecture: ClassVar[str] = "stable-diffusion-xl"
    guidance_scale: ClassVar[float] = 5.0
    num_encoders: ClassVar[int] = 2

    def __init__(self, *, zeros_for_empty: bool = True, **parts: Any) -> None:
        self._zeros_for_empty = zeros_for_empty
        super().__init__(**parts)

    @classmethod
    def prompt_encoder(cls, tokenizer: Any, text_encoder: Any) -> ClipPromptEncoder:
        """An encoder that takes the last layer but one, without the final norm."""
        return ClipPromptEncoder(tokenizer, text_encoder, final_norm=False, default_skip=1)

    @classmethod
    def options_of(cls, folder: ComponentFolder) -> dict[str, Any]:
        """Read whether the empty prompt is zeros; refuses refiners.

        Raises:
            UnsupportedArchitecture: the model only refines another model's pictures.
        """
        if folder.index.get("requires_aesthetics_score"):
            raise UnsupportedArchitecture(
                "this is an SDXL refiner, which only finishes another model's pictures; give the "
                "base model"
            )
        return {"zeros_for_empty": bool(folder.index.get("force_zeros_for_empty_prompt", True))}

    @classmethod
    def corrected(cls, scheduler_config: Mapping[str, Any]) -> dict[str, Any]:
        """The config unchanged, as published ones are correct."""
        return dict(scheduler_config)

    def _encode(self, prompt: PromptText) -> PromptStates:
        first, second = (encoder.encode(prompt) for encoder in self._encoders)
        states = torch.cat([first.states, second.states], dim=-1)
        pooled = second.pooled
        if self._zeros_for_empty and not prompt.text:
            states, pooled = torch.zeros_like(states), torch.zeros_like(pooled)
        return PromptStates(key=prompt, states=states, pooled=pooled, num_tokens=first.num_tokens)

    def _conditions(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Pooled states `[R, P]` and sizes `[R, 6]`: the original, the crop's corner and the
        target.

        All are height before width; nothing is cropped.
        """
        pooled = torch.cat([_pooled(row.prompt) for row in rows])
        sizes = [[row.height, row.width, 0, 0, row.height, row.width] for row in rows]
        return {
            "added_cond_kwargs": {
                "text_embeds": pooled.to(device=self.device, dtype=self._dtype),
                "time_ids": torch.tensor(sizes, device=self.device, dtype=torch.float32),
            }
        }


def _pooled(prompt: PromptStates) -> torch.Tensor:
    assert prompt.pooled is not None
    return prompt.pooled
