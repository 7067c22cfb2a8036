"""Qwen-Image, and what its editing models share with it.

Tokens of text and packed tokens of images, in two streams, attend to each other.
Rotary positions `(image, row, column)` count from the picture's centre, and those of the text
follow on the diagonal. Latents are packed, two by two cells to a token, only in here.

Paper: Wu et al. 2025, arXiv:2508.02324.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from engine.contract.draw import DenoisingFacts, GuidanceKind
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder, autoencoder_dtype
from engine.diffusion.families.family import GENERAL_TASKS, FamilyFacts, Row
from engine.diffusion.families.flow_schedules import FlowSchedules
from engine.diffusion.families.flux import pack, unpack
from engine.diffusion.families.frame_autoencoder import FrameAutoencoder
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.quantized import load_transformer, quantize
from engine.diffusion.families.row_layouts import stack_timesteps
from engine.diffusion.families.transformer_family import TransformerFamily
from engine.diffusion.noise_schedule import NoiseSchedule
from engine.diffusion.prompt.language import LanguagePromptEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.errors import UnsupportedArchitecture
from engine.lora.images.layers import AdaptedLayers
from engine.weights.source import Checkpoint

_PATCH = 2
"""The latent cells of a token, on a side."""
_MAX_SHIFT = 1.15
_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, "
    "quantity, text, spatial relationships of the objects and background:<|im_end|>\n"
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
_TEMPLATE_TOKENS = 34
"""The tokens of the template before the prompt, which the transformer does not see."""
_PROMPT_TOKENS = 512
_SIDE = 1328


class QwenImageFamily(TransformerFamily):
    """Qwen-Image (see the module).

    Args:
        scheduler_config: the model's own scheduler config.
        defaults: default `num_inference_steps`, `guidance_scale` and `size` of requests.

    Raises:
        UnsupportedArchitecture: the transformer does not fit the other components.
    """

    def __init__(
        self,
        *,
        transformer: QwenImageTransformer2DModel,
        autoencoder: Autoencoder,
        encoder: LanguagePromptEncoder,
        scheduler_config: Mapping[str, Any],
        defaults: Mapping[str, float] | None = None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        _check(transformer.config, autoencoder, encoder)
        super().__init__(transformer, autoencoder, dtype=dtype, device=device)
        self._one_by_one |= bool(transformer.config.get("zero_cond_t"))
        self._encoder = encoder
        self.adapted = AdaptedLayers({"transformer": [self._transformer]}, device=device)
        self._schedules = FlowSchedules(
            scheduler_config, max_shift=_MAX_SHIFT, spans_unit_interval=True
        )
        self.facts = _facts(autoencoder, self._schedules, defaults or {})

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> "QwenImageFamily":
        """Load a diffusers folder; its transformer may be a GGUF file.

        Quantisation includes the text encoder, which is nearly half as large as the transformer.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        folder = ComponentFolder(checkpoint.path, options)
        transformer = load_transformer(
            QwenImageTransformer2DModel, folder, checkpoint.path, options
        )
        encoder = cls.load_encoder(folder)
        quantize(encoder.model, options.quantization, dtype=options.dtype, device=options.device)
        encoder.model.to(options.device)
        vae_dtype = autoencoder_dtype(folder.config("vae"), options.dtype)
        vae = folder.load("vae", AutoencoderKLQwenImage, dtype=vae_dtype)
        return cls(
            transformer=transformer,
            autoencoder=FrameAutoencoder(vae, dtype=vae_dtype, device=options.device),
            encoder=encoder,
            scheduler_config=folder.scheduler_config(),
            defaults=folder.defaults(),
            dtype=options.dtype,
            device=options.device,
            **cls.options_of(folder),
        )

    @classmethod
    def options_of(cls, folder: ComponentFolder) -> dict[str, Any]:
        """Further arguments of the class."""
        return {}

    @classmethod
    def load_encoder(cls, folder: ComponentFolder) -> LanguagePromptEncoder:
        """Load the text encoder, without the parts that see pictures and write text."""
        whole = folder.load("text_encoder", Qwen2_5_VLForConditionalGeneration)
        tokenizer = folder.tokenizer("tokenizer", Qwen2Tokenizer)
        return prompt_encoder(tokenizer, whole.model.language_model)

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A new schedule for one image, shifted by its size if the config says so."""
        side = self._autoencoder.factor * _PATCH
        return self._schedules.create(name, num_steps, (width // side) * (height // side))

    def _encode(self, prompt: PromptText) -> PromptStates:
        """The states `[1, L, D]`; prompts differ in length."""
        return self._encoder.states(prompt)

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        images = [torch.cat([row.latents for row in rows])]
        for references in zip(*(row.references for row in rows), strict=True):
            images.append(torch.cat(references).to(images[0]))
        tokens = [pack(image) for image in images]
        height, width = images[0].shape[-2:]
        states = torch.cat([row.prompt.states for row in rows])
        with self.adapted.rows(row.adapters for row in rows):
            predictions = self._transformer(
                hidden_states=torch.cat(tokens, dim=1).to(self._dtype),
                timestep=stack_timesteps(rows, self.device) / 1000,
                encoder_hidden_states=states.to(self._dtype),
                img_shapes=[[_grid(image) for image in images]] * len(rows),
                return_dict=False,
            )[0]
        return unpack(predictions[:, : tokens[0].shape[1]].float(), height, width)


def prompt_encoder(tokenizer: Qwen2Tokenizer, model: PreTrainedModel) -> LanguagePromptEncoder:
    """The encoder of prompts, with the template and the layer of the model's training."""
    return LanguagePromptEncoder(
        tokenizer,
        model,
        template=_TEMPLATE,
        layer=-1,
        num_dropped=_TEMPLATE_TOKENS,
        max_tokens=_PROMPT_TOKENS,
    )


def _grid(latents: torch.Tensor) -> tuple[int, int, int]:
    """The frames, rows and columns of an image's tokens."""
    return 1, latents.shape[2] // _PATCH, latents.shape[3] // _PATCH


def _check(
    config: Mapping[str, Any], autoencoder: Autoencoder, encoder: LanguagePromptEncoder
) -> None:
    """Refuse a transformer that the other components do not fit, or of another model."""
    found = (config["in_channels"], config["joint_attention_dim"])
    wanted = (autoencoder.channels * _PATCH**2, encoder.width)
    if found != wanted:
        raise UnsupportedArchitecture(
            f"the transformer takes tokens of {found[0]} channels and prompt states of {found[1]} "
            f"numbers; the VAE and the text encoder make {wanted[0]} and {wanted[1]}"
        )
    if config.get("use_additional_t_cond") or config.get("use_layer3d_rope"):
        raise UnsupportedArchitecture(
            "the transformer is that of Qwen-Image-Layered, which splits pictures into layers; "
            "only Qwen-Image is supported"
        )


def _facts(
    autoencoder: Autoencoder, schedules: FlowSchedules, defaults: Mapping[str, float]
) -> FamilyFacts:
    """The facts, with the defaults of the model card."""
    side = int(defaults.get("size", _SIDE))
    return FamilyFacts(
        architecture="qwen-image",
        tasks=GENERAL_TASKS,
        denoising=DenoisingFacts(
            guidance=GuidanceKind.CLASSIFIER_FREE,
            schedulers=schedules.names,
            default_steps=int(defaults.get("num_inference_steps", 50)),
            default_guidance_scale=float(defaults.get("guidance_scale", 4.0)),
        ),
        latent_channels=autoencoder.channels,
        vae_factor=autoencoder.factor,
        size_multiple=autoencoder.factor * _PATCH,
        default_width=side,
        default_height=side,
        min_side=autoencoder.factor * _PATCH,
        max_pixels=2048 * 2048,
        guidance_patch=_PATCH,
    )
