"""Stable Diffusion 3 and 3.5, with two CLIP encoders, T5 if shipped, and a joint transformer.

The states of both CLIPs are side by side in the channels, padded to T5's width, and T5's states
follow in the sequence.

Paper: Esser et al. 2024, arXiv:2403.03206.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import SD3Transformer2DModel

from engine.contract.draw import DenoisingFacts, GuidanceKind
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.family import GENERAL_TASKS, FamilyFacts, Row
from engine.diffusion.families.flow_schedules import FlowSchedules
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.quantized import load_t5, load_transformer
from engine.diffusion.families.row_layouts import stack_timesteps
from engine.diffusion.families.stable_diffusion_3_names import original_names
from engine.diffusion.families.transformer_family import (
    TransformerFamily,
    check_channels,
    check_sides,
)
from engine.diffusion.noise_schedule import NoiseSchedule
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.diffusion.prompt.text import PromptText
from engine.lora.images.layers import AdaptedLayers, text_encoders
from engine.weights.source import Checkpoint

_MAX_SHIFT = 1.16
_PROMPT_TOKENS = 256
"""The length to which T5's states are padded; without T5 they are zeros of this length."""


class StableDiffusion3Family(TransformerFamily):
    """SD3 medium, and 3.5 medium and large (see the module).

    Args:
        clips: the CLIP encoders with projections; the second's states follow the first's.
        t5: the T5 encoder; None if the checkpoint has none.
        scheduler_config: the model's own scheduler config.

    Raises:
        UnsupportedArchitecture: transformer and VAE have latents with different channels.
    """

    def __init__(
        self,
        *,
        transformer: SD3Transformer2DModel,
        autoencoder: Autoencoder,
        clips: tuple[ClipPromptEncoder, ClipPromptEncoder],
        t5: T5PromptEncoder | None,
        scheduler_config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        config = transformer.config
        check_channels(config, autoencoder, "Stable Diffusion 3")
        super().__init__(transformer, autoencoder, dtype=dtype, device=device)
        self._clips, self._t5 = clips, t5
        encoders = [clip.model for clip in clips] + ([] if t5 is None else [t5.model])
        self.adapted = AdaptedLayers(
            {"transformer": [self._transformer]} | text_encoders(encoders),
            device=device,
            aliases={"transformer": original_names(config).modules},
        )
        self._schedules = FlowSchedules(
            scheduler_config, max_shift=_MAX_SHIFT, spans_unit_interval=False
        )
        self._text_width = int(config.joint_attention_dim)
        self._token_side = autoencoder.factor * int(config.patch_size)
        self._max_side = self._token_side * int(config.pos_embed_max_size)
        self.facts = self._facts(autoencoder.factor * int(config.sample_size))

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> "StableDiffusion3Family":
        """Load a diffusers folder; its transformer may be a GGUF file, and T5 may be missing.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        folder = ComponentFolder(checkpoint.path, options)
        transformer = load_transformer(SD3Transformer2DModel, folder, checkpoint.path, options)
        first, second = (
            ClipPromptEncoder(
                folder.tokenizer(f"tokenizer{suffix}"),
                folder.text_encoder(f"text_encoder{suffix}"),
                final_norm=False,
                default_skip=1,
            )
            for suffix in ("", "_2")
        )
        t5 = None
        if folder.has("text_encoder_3"):
            t5 = load_t5(folder, "_3", options, length=_PROMPT_TOKENS)
        return cls(
            transformer=transformer,
            autoencoder=folder.autoencoder(),
            clips=(first, second),
            t5=t5,
            scheduler_config=folder.scheduler_config(),
            dtype=options.dtype,
            device=options.device,
        )

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A new schedule for one image, shifted by its size if the config says so.

        Raises:
            InvalidParameter: there is no such name, or a side is beyond the learned positions.
        """
        check_sides(width, height, self._max_side)
        side = self._token_side
        return self._schedules.create(name, num_steps, (width // side) * (height // side))

    def _encode(self, prompt: PromptText) -> PromptStates:
        """The states `[1, 77k + 256, D]` and both CLIPs' pooled states."""
        first, second = (clip.encode(prompt) for clip in self._clips)
        assert first.pooled is not None and second.pooled is not None
        # The tokenizers may differ, and with them the number of chunks.
        length = max(first.states.shape[1], second.states.shape[1])
        sides = [_padded(each.states, length) for each in (first, second)]
        clip = torch.cat(sides, dim=-1)
        text, warnings = self._text_states(prompt, clip)
        wide = torch.nn.functional.pad(clip, (0, text.shape[-1] - clip.shape[-1]))
        return PromptStates(
            key=prompt,
            states=torch.cat([wide, text], dim=1),
            pooled=torch.cat([first.pooled, second.pooled], dim=-1),
            num_tokens=first.num_tokens,
            warnings=warnings,
        )

    def _text_states(
        self, prompt: PromptText, like: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[str, ...]]:
        """T5's states, or zeros if the model is served without it, and its warnings."""
        if self._t5 is None:
            return like.new_zeros((1, _PROMPT_TOKENS, self._text_width)), ()
        encoded = self._t5.encode(prompt)
        return encoded.states.to(like), encoded.warnings

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        latents = torch.cat([row.latents for row in rows])
        states = torch.cat([row.prompt.states for row in rows])
        pooled = torch.cat([_pooled(row) for row in rows])
        with self.adapted.rows(row.adapters for row in rows):
            predictions: torch.Tensor = self._transformer(
                hidden_states=latents.to(self._dtype),
                timestep=stack_timesteps(rows, self.device),
                encoder_hidden_states=states.to(self._dtype),
                pooled_projections=pooled.to(self._dtype),
                return_dict=False,
            )[0]
        return predictions.float()

    def _facts(self, default_side: int) -> FamilyFacts:
        autoencoder = self._autoencoder
        return FamilyFacts(
            architecture="stable-diffusion-3",
            tasks=GENERAL_TASKS,
            denoising=DenoisingFacts(
                guidance=GuidanceKind.CLASSIFIER_FREE,
                schedulers=self._schedules.names,
                default_steps=28,
                default_guidance_scale=7.0,
            ),
            latent_channels=autoencoder.channels,
            vae_factor=autoencoder.factor,
            size_multiple=self._token_side,
            default_width=default_side,
            default_height=default_side,
            min_side=self._token_side,
            max_pixels=min(2048, self._max_side) ** 2,
        )


def _padded(states: torch.Tensor, length: int) -> torch.Tensor:
    return torch.nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))


def _pooled(row: Row) -> torch.Tensor:
    assert row.prompt.pooled is not None
    return row.prompt.pooled
