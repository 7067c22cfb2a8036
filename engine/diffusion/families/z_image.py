"""Z-Image, and Z-Image Turbo, which draws in 8 steps without guidance.

A single stream: tokens of text and image pass through the same layers. Both are padded with a
learned token to whole groups of 32. Positions are rotary, `(text, row, column)`.

Paper: Z-Image Team 2025, arXiv:2511.22699.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from transformers import Qwen2Tokenizer, Qwen3Model

from engine.contract.draw import DenoisingFacts, GuidanceKind
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder
from engine.diffusion.families.family import GENERAL_TASKS, FamilyFacts, Row
from engine.diffusion.families.flow_schedules import FlowSchedules
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.quantized import load_transformer, quantize
from engine.diffusion.families.row_layouts import stack_timesteps
from engine.diffusion.families.transformer_family import TransformerFamily, check_sides
from engine.diffusion.families.z_image_names import original_names
from engine.diffusion.noise_schedule import NoiseSchedule
from engine.diffusion.prompt.language import LanguagePromptEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedArchitecture
from engine.lora.images.layers import AdaptedLayers, text_encoders
from engine.weights.source import Checkpoint

_PATCH = 2
"""The latent cells of a token, on a side."""
_MAX_SHIFT = 1.15
_TURBO_SHIFT = 3.0
"""The shift of Turbo's noise schedule. Only this and the weights differ from Z-Image, whose shift
is 6."""
_TEMPLATE = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
"""Qwen3's chat template for one message, whose answer may begin with thoughts."""
_PROMPT_TOKENS = 512
_LAYER = -2


class ZImageFamily(TransformerFamily):
    """Z-Image and Z-Image Turbo (see the module).

    Guidance counts as in the other families, so a scale of 1 is off; that is 0 in diffusers'
    pipeline, whose scales are all smaller by 1.

    Args:
        scheduler_config: the model's own scheduler config.
        defaults: default `num_inference_steps`, `guidance_scale` and `size` of requests.

    Raises:
        UnsupportedArchitecture: the transformer does not fit the other components.
    """

    def __init__(
        self,
        *,
        transformer: ZImageTransformer2DModel,
        autoencoder: Autoencoder,
        encoder: LanguagePromptEncoder,
        scheduler_config: Mapping[str, Any],
        defaults: Mapping[str, float] | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        config = transformer.config
        _check(config, autoencoder, encoder)
        super().__init__(transformer, autoencoder, dtype=dtype, device=device)
        times = transformer.t_embedder.mlp[0]
        if not hasattr(times, "weight"):
            # diffusers reads the dtype of this layer's weight, which packed layers do not have.
            times.register_buffer("weight", torch.empty(0, dtype=dtype), persistent=False)
        self._encoder = encoder
        self.adapted = AdaptedLayers(
            {"transformer": [self._transformer]} | text_encoders([encoder.model]),
            device=device,
            aliases={"transformer": original_names(config).modules},
        )
        self._schedules = FlowSchedules(
            scheduler_config, max_shift=_MAX_SHIFT, spans_unit_interval=True
        )
        self._token_side = autoencoder.factor * _PATCH
        self._max_side = self._token_side * min(config.axes_lens[1:])
        shift = float(scheduler_config.get("shift", 1.0))
        self.facts = self._facts(defaults or {}, is_turbo=shift <= _TURBO_SHIFT)

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> "ZImageFamily":
        """Load a diffusers folder; its transformer may be a GGUF file.

        Quantisation includes the text encoder, which is nearly as large as the transformer.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        folder = ComponentFolder(checkpoint.path, options)
        transformer = load_transformer(ZImageTransformer2DModel, folder, checkpoint.path, options)
        language = folder.load("text_encoder", Qwen3Model)
        quantize(language, options.quantization, dtype=options.dtype, device=options.device)
        return cls(
            transformer=transformer,
            autoencoder=folder.autoencoder(),
            encoder=prompt_encoder(
                folder.tokenizer("tokenizer", Qwen2Tokenizer), language.to(options.device)
            ),
            scheduler_config=folder.scheduler_config(),
            defaults=folder.defaults(),
            dtype=options.dtype,
            device=options.device,
        )

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A new schedule for one image, shifted by its size if the config says so.

        Raises:
            InvalidParameter: there is no such name, or a side is beyond the model's positions.
        """
        check_sides(width, height, self._max_side)
        side = self._token_side
        return self._schedules.create(name, num_steps, (width // side) * (height // side))

    def _encode(self, prompt: PromptText) -> PromptStates:
        """The states `[1, L, D]`; prompts differ in length."""
        return self._encoder.states(prompt)

    def _layout(self, row: Row) -> Hashable:
        """The number of groups to which the transformer pads the prompt."""
        num_groups: int = math.ceil(row.prompt.states.shape[1] / SEQ_MULTI_OF)
        return num_groups

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        latents = torch.cat([row.latents for row in rows]).to(self._dtype)
        with self.adapted.rows(row.adapters for row in rows):
            predictions = self._transformer(
                list(latents.unsqueeze(2)),
                (1000 - stack_timesteps(rows, self.device)) / 1000,
                [row.prompt.states[0].to(self._dtype) for row in rows],
                return_dict=False,
            )[0]
        # The transformer counts time from noise to picture.
        return -torch.stack(predictions).squeeze(2).float()

    def _facts(self, defaults: Mapping[str, float], *, is_turbo: bool) -> FamilyFacts:
        autoencoder = self._autoencoder
        steps, scale = (8, 1.0) if is_turbo else (50, 5.0)
        scale = float(defaults.get("guidance_scale", scale))
        side = min(int(defaults.get("size", 1024)), self._max_side)
        return FamilyFacts(
            architecture="z-image",
            tasks=GENERAL_TASKS,
            denoising=DenoisingFacts(
                guidance=GuidanceKind.NONE if scale == 1.0 else GuidanceKind.CLASSIFIER_FREE,
                schedulers=self._schedules.names,
                default_steps=int(defaults.get("num_inference_steps", steps)),
                default_guidance_scale=scale,
            ),
            latent_channels=autoencoder.channels,
            vae_factor=autoencoder.factor,
            size_multiple=self._token_side,
            default_width=side,
            default_height=side,
            min_side=self._token_side,
            max_pixels=min(2048, self._max_side) ** 2,
        )


def prompt_encoder(tokenizer: Qwen2Tokenizer, model: Qwen3Model) -> LanguagePromptEncoder:
    """The encoder of prompts, with the template and the layer of the model's training."""
    return LanguagePromptEncoder(
        tokenizer, model, template=_TEMPLATE, layer=_LAYER, max_tokens=_PROMPT_TOKENS
    )


def _check(
    config: Mapping[str, Any], autoencoder: Autoencoder, encoder: LanguagePromptEncoder
) -> None:
    """Refuse a transformer that other components do not fit, or with other tokens."""
    found = (config["in_channels"], config["cap_feat_dim"])
    wanted = (autoencoder.channels, encoder.width)
    if found != wanted:
        raise UnsupportedArchitecture(
            f"the transformer takes latents of {found[0]} channels and prompt states of {found[1]} "
            f"numbers; the VAE and the text encoder make {wanted[0]} and {wanted[1]}"
        )
    if _PATCH not in config["all_patch_size"] or 1 not in config["all_f_patch_size"]:
        raise UnsupportedArchitecture(
            f"the transformer has tokens of {config['all_patch_size']} cells on a side; only "
            f"{_PATCH} is supported"
        )
    if config["axes_lens"][0] < _PROMPT_TOKENS + 2:
        raise UnsupportedArchitecture(
            f"the transformer has positions for {config['axes_lens'][0]} tokens of text; at least "
            f"{_PROMPT_TOKENS + 2} are needed"
        )
