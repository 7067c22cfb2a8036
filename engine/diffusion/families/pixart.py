"""PixArt-Alpha and PixArt-Sigma: a transformer that attends to T5's states of the prompt.

Papers: Chen et al. 2023, arXiv:2310.00426; Chen et al. 2024, arXiv:2403.04692.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel

from engine.contract.draw import DenoisingFacts, GuidanceKind
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.family import GENERAL_TASKS, FamilyFacts, Row
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.quantized import load_t5, load_transformer
from engine.diffusion.families.row_layouts import stack_timesteps
from engine.diffusion.families.transformer_family import TransformerFamily, check_channels
from engine.diffusion.noise_schedule import DIFFUSION_SCHEDULES, NoiseSchedule, NoiseSchedules
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.diffusion.prompt.text import PromptText
from engine.lora.images.layers import AdaptedLayers, text_encoders
from engine.weights.source import Checkpoint

_ALPHA = "PixArtAlphaPipeline"
_PROMPT_TOKENS = 300
_ALPHA_PROMPT_TOKENS = 120
"""The tokens after which prompts are cut, as in the models' training."""


class PixArtPromptEncoder(T5PromptEncoder):
    """T5 on prompts in lower case, without padding, which the transformer would not see."""

    pads = False

    def _encode_text(self, text: str) -> tuple[torch.Tensor, int, bool]:
        return super()._encode_text(text.lower().strip())


class PixArtFamily(TransformerFamily):
    """PixArt-Alpha and PixArt-Sigma (see the module).

    Args:
        scheduler_config: the model's own scheduler config.

    Raises:
        UnsupportedArchitecture: transformer and VAE have latents with different channels.
    """

    def __init__(
        self,
        *,
        transformer: PixArtTransformer2DModel,
        autoencoder: Autoencoder,
        t5: T5PromptEncoder,
        scheduler_config: Mapping[str, Any],
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        config = transformer.config
        check_channels(config, autoencoder, "PixArt")
        super().__init__(transformer, autoencoder, dtype=dtype, device=device)
        self._t5 = t5
        self.adapted = AdaptedLayers(
            {"transformer": [self._transformer]} | text_encoders([t5.model]), device=device
        )
        self._schedules = NoiseSchedules(scheduler_config, DIFFUSION_SCHEDULES)
        self._token_side = autoencoder.factor * int(config.patch_size)
        self.facts = self._facts(autoencoder.factor * int(config.sample_size))

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> "PixArtFamily":
        """Load a diffusers folder. Quantisation includes the T5 encoder, which is much larger than
        the transformer.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        folder = ComponentFolder(checkpoint.path, options)
        transformer = load_transformer(PixArtTransformer2DModel, folder, checkpoint.path, options)
        is_alpha = folder.index.get("_class_name") == _ALPHA
        length = _ALPHA_PROMPT_TOKENS if is_alpha else _PROMPT_TOKENS
        return cls(
            transformer=transformer,
            autoencoder=folder.autoencoder(),
            t5=load_t5(folder, "", options, length=length, encoder_class=PixArtPromptEncoder),
            scheduler_config=folder.scheduler_config(),
            dtype=options.dtype,
            device=options.device,
        )

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A new schedule for one image; its size has no effect."""
        return self._schedules.create(name, num_steps)

    def _encode(self, prompt: PromptText) -> PromptStates:
        """T5's states `[1, L, D]`; prompts differ in length."""
        text = self._t5.encode(prompt)
        return PromptStates(
            key=prompt, states=text.states, num_tokens=text.num_tokens, warnings=text.warnings
        )

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        latents = torch.cat([row.latents for row in rows])
        states = torch.cat([row.prompt.states for row in rows])
        with self.adapted.rows(row.adapters for row in rows):
            predictions: torch.Tensor = self._transformer(
                latents.to(self._dtype),
                encoder_hidden_states=states.to(self._dtype),
                timestep=stack_timesteps(rows, self.device),
                added_cond_kwargs=self._sizes(rows),
                return_dict=False,
            )[0]
        # Further channels are variances, which no sampler needs.
        return predictions[:, : latents.shape[1]].float()

    def _sizes(self, rows: Sequence[Row]) -> dict[str, torch.Tensor | None]:
        """The conditions on the picture's size in large models of PixArt-Alpha."""
        if not self._transformer.use_additional_conditions:
            return {"resolution": None, "aspect_ratio": None}
        sizes = torch.tensor(
            [[row.height, row.width] for row in rows], dtype=self._dtype, device=self.device
        )
        ratios = [[row.height / row.width] for row in rows]
        return {
            "resolution": sizes,
            "aspect_ratio": torch.tensor(ratios, dtype=self._dtype, device=self.device),
        }

    def _facts(self, default_side: int) -> FamilyFacts:
        autoencoder = self._autoencoder
        return FamilyFacts(
            architecture="pixart",
            tasks=GENERAL_TASKS,
            denoising=DenoisingFacts(
                guidance=GuidanceKind.CLASSIFIER_FREE,
                schedulers=self._schedules.names,
                default_steps=20,
                default_guidance_scale=4.5,
            ),
            latent_channels=autoencoder.channels,
            vae_factor=autoencoder.factor,
            size_multiple=self._token_side,
            default_width=default_side,
            default_height=default_side,
            min_side=self._token_side,
            max_pixels=max(2048, default_side) ** 2,
        )
