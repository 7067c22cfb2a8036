"""FLUX.2: dev (guidance as an input), klein (few steps, no guidance) and klein base (guided).

A language model encodes the prompt. One sequence of text tokens, image tokens and the tokens of any
number of reference images passes through the transformer; positions are rotary, `(image, row,
column, word)` each. A latent cell is a token: the autoencoder joins two by two of its own.

Sources: Labs 2025 (bfl.ai/blog/flux-2) and the pipelines of diffusers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel
from diffusers.pipelines.flux2.system_messages import SYSTEM_MESSAGE
from transformers import (
    Mistral3ForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3ForCausalLM,
)

from engine.contract.draw import DenoisingFacts, GuidanceKind, ImageTask
from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.components import ComponentFolder, autoencoder_dtype
from engine.diffusion.families.family import FamilyFacts, Row
from engine.diffusion.families.flow_schedules import FlowSchedules
from engine.diffusion.families.flux_names import FLUX_2, original_names
from engine.diffusion.families.options import LoadOptions
from engine.diffusion.families.pipeline_facts import FLUX_2 as FLUX_2_FACTS
from engine.diffusion.families.quantized import load_transformer, quantize
from engine.diffusion.families.row_layouts import stack_timesteps
from engine.diffusion.families.transformer_family import TransformerFamily, check_channels
from engine.diffusion.noise_schedule import NoiseSchedule
from engine.diffusion.prompt.language_model import LanguageModelEncoder
from engine.diffusion.prompt.states import PromptStates
from engine.diffusion.prompt.text import PromptText
from engine.lora.images.layers import AdaptedLayers
from engine.weights.source import Checkpoint

_PATCH = 2
"""The cells of the VAE that a latent cell joins, on a side."""
_MAX_SHIFT = 1.15
_PROMPT_TOKENS = 512
_IMAGE_SPACING = 10
"""The distance between the positions of reference images, in their first number."""
_KLEIN = "Flux2KleinPipeline"

QWEN3: Mapping[str, Any] = {
    "layers": (9, 18, 27),
    "frame": (
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
}
"""What klein reads of Qwen3, whose template writes this around a prompt when it does not think."""
MISTRAL3: Mapping[str, Any] = {
    "layers": (10, 20, 30),
    "frame": (f"<s>[SYSTEM_PROMPT]{SYSTEM_MESSAGE}[/SYSTEM_PROMPT][INST]", "[/INST]"),
    "unread": ("[IMG]",),
}
"""What dev reads of Mistral Small 3."""


class Flux2Autoencoder(Autoencoder):
    """Wraps an `AutoencoderKLFlux2`, whose running statistics bring its latents to about unit
    variance."""

    def __init__(
        self, vae: AutoencoderKLFlux2, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        vae.register_to_config(scaling_factor=1.0)
        super().__init__(vae, dtype=dtype, device=device)
        self.channels *= _PATCH**2
        self.factor *= _PATCH
        variance = vae.bn.running_var.float() + vae.config.batch_norm_eps
        self._mean = vae.bn.running_mean.float().view(1, -1, 1, 1)
        self._deviation = torch.sqrt(variance).view(1, -1, 1, 1)

    def encode(
        self, image: torch.Tensor, generator: torch.Generator | None, *, scaled: bool = True
    ) -> torch.Tensor:
        """Encode pixels `[N, 3, H, W]` in [-1, 1] as latents, fp32; see `Autoencoder`."""
        cells = super().encode(image, generator, scaled=False)
        joined = torch.nn.functional.pixel_unshuffle(cells, _PATCH)
        return (joined - self._mean) / self._deviation if scaled else joined

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents `[N, C, h, w]` to pixels `[N, 3, H, W]`, fp32, clipped to [-1,
        1]."""
        joined = latents * self._deviation + self._mean
        return super().decode(torch.nn.functional.pixel_shuffle(joined, _PATCH))


class Flux2Family(TransformerFamily):
    """FLUX.2 in all variants (see the module).

    Args:
        scheduler_config: the model's own scheduler config.
        guidance: how the model is guided.

    Raises:
        UnsupportedArchitecture: transformer and VAE have latents with different channels.
    """

    def __init__(
        self,
        *,
        transformer: Flux2Transformer2DModel,
        autoencoder: Flux2Autoencoder,
        encoder: LanguageModelEncoder,
        scheduler_config: Mapping[str, Any],
        guidance: GuidanceKind,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        config = transformer.config
        check_channels(config, autoencoder, "FLUX.2")
        super().__init__(transformer, autoencoder, dtype=dtype, device=device)
        self._encoder = encoder
        self.adapted = AdaptedLayers(
            {"transformer": [self._transformer]},
            device=device,
            aliases={"transformer": original_names(config, FLUX_2).modules},
        )
        self._schedules = FlowSchedules(
            scheduler_config, max_shift=_MAX_SHIFT, spans_unit_interval=True, mu_of=empirical_mu
        )
        self._takes_guidance = guidance is GuidanceKind.DISTILLED
        self.facts = _facts(autoencoder, self._schedules, guidance)

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> "Flux2Family":
        """Load a diffusers folder. Quantisation includes the text encoder, which is as large as the
        transformer.

        Raises:
            ModelLoadError: the checkpoint cannot be loaded.
        """
        folder = ComponentFolder(checkpoint.path, options)
        transformer = load_transformer(Flux2Transformer2DModel, folder, checkpoint.path, options)
        is_klein = folder.index.get("_class_name") == _KLEIN
        dtype = autoencoder_dtype(folder.config("vae"), options.dtype)
        vae = folder.load("vae", AutoencoderKLFlux2, dtype=dtype)
        vae.to(memory_format=torch.channels_last)
        return cls(
            transformer=transformer,
            autoencoder=Flux2Autoencoder(vae, dtype=vae.dtype, device=options.device),
            encoder=_load_encoder(folder, options, is_klein=is_klein),
            scheduler_config=folder.scheduler_config(),
            guidance=_guidance(
                is_klein=is_klein,
                is_distilled=folder.index.get("is_distilled") is True,
                takes_scale=bool(transformer.config.guidance_embeds),
            ),
            dtype=options.dtype,
            device=options.device,
        )

    def encode_image(self, image: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Encode pixels `[1, 3, H, W]` in [-1, 1] as scaled latents: the mode, as diffusers'
        pipelines do."""
        return self._autoencoder.encode(image, None)

    def new_noise_schedule(
        self, name: str | None, num_steps: int, width: int, height: int
    ) -> NoiseSchedule:
        """A new schedule for one image, shifted by its size and steps if the config says so."""
        side = self._autoencoder.factor
        return self._schedules.create(name, num_steps, (width // side) * (height // side))

    def _encode(self, prompt: PromptText) -> PromptStates:
        """The language model's states, padded to one length."""
        text = self._encoder.encode(prompt)
        return PromptStates(
            key=prompt, states=text.states, num_tokens=text.num_tokens, warnings=text.warnings
        )

    def _forward(self, rows: Sequence[Row]) -> torch.Tensor:
        latents = torch.cat([row.latents for row in rows])
        images = [latents]
        for references in zip(*(row.references for row in rows), strict=True):
            images.append(torch.cat(references).to(latents))
        states = torch.cat([row.prompt.states for row in rows])
        guidance = None
        if self._takes_guidance:
            scales = [row.guidance_scale for row in rows]
            guidance = torch.tensor(scales, dtype=torch.float32, device=self.device)
        with self.adapted.rows(row.adapters for row in rows):
            predictions = self._transformer(
                hidden_states=torch.cat([_tokens(image) for image in images], 1).to(self._dtype),
                timestep=stack_timesteps(rows, self.device) / 1000,
                guidance=guidance,
                encoder_hidden_states=states.to(self._dtype),
                txt_ids=_positions(0, 1, 1, states.shape[1]).to(self.device),
                img_ids=image_positions(images).to(self.device),
                return_dict=False,
            )[0]
        own: torch.Tensor = predictions[:, : latents.shape[2:].numel()].float()
        return torch.unflatten(own.transpose(1, 2), 2, latents.shape[2:])


def empirical_mu(num_tokens: int, num_steps: int) -> float:
    """The shift of the noise schedule that suits a picture's size and steps, fitted by the model's
    authors: a line through 10 and 200 steps, and that of 200 steps for large pictures."""
    at_200 = 0.00016927 * num_tokens + 0.45666666
    if num_tokens > 4300:
        return at_200
    at_10 = 8.73809524e-05 * num_tokens + 1.89833333
    slope = (at_200 - at_10) / 190.0
    return slope * num_steps + (at_200 - 200.0 * slope)


def image_positions(images: Sequence[torch.Tensor]) -> torch.Tensor:
    """The positions of all tokens, `[T, 4]`: of the image that is drawn, then of each reference."""
    return torch.cat(
        [
            _positions(number * _IMAGE_SPACING, image.shape[2], image.shape[3], 1)
            for number, image in enumerate(images)
        ]
    )


def _positions(image: int, height: int, width: int, num_words: int) -> torch.Tensor:
    sides = (torch.arange(size) for size in (height, width, num_words))
    return torch.cartesian_prod(torch.tensor([image]), *sides)


def _tokens(latents: torch.Tensor) -> torch.Tensor:
    return latents.flatten(2).transpose(1, 2)


def _load_encoder(
    folder: ComponentFolder, options: LoadOptions, *, is_klein: bool
) -> LanguageModelEncoder:
    if is_klein:
        tokenizer = folder.tokenizer("tokenizer", Qwen2Tokenizer)
        model, reading = folder.load("text_encoder", Qwen3ForCausalLM), QWEN3
    else:
        tokenizer = folder.tokenizer("tokenizer", PreTrainedTokenizerFast, "PixtralProcessor")
        model, reading = folder.load("text_encoder", Mistral3ForConditionalGeneration), MISTRAL3
    encoder = LanguageModelEncoder(tokenizer, model, **reading, max_sequence_length=_PROMPT_TOKENS)
    quantize(encoder.model, options.quantization, dtype=options.dtype, device=options.device)
    encoder.model.to(options.device)
    return encoder


def _guidance(*, is_klein: bool, is_distilled: bool, takes_scale: bool) -> GuidanceKind:
    if is_klein and not is_distilled:
        return GuidanceKind.CLASSIFIER_FREE
    return GuidanceKind.DISTILLED if takes_scale and not is_klein else GuidanceKind.NONE


def _facts(
    autoencoder: Autoencoder, schedules: FlowSchedules, guidance: GuidanceKind
) -> FamilyFacts:
    """The facts, with the defaults of the model cards."""
    steps, scale = (4, 1.0) if guidance is GuidanceKind.NONE else (50, 4.0)
    return FamilyFacts(
        architecture="flux-2",
        tasks=(
            ImageTask.TEXT_TO_IMAGE,
            ImageTask.IMAGE_TO_IMAGE,
            ImageTask.INPAINT,
            ImageTask.EDIT,
            ImageTask.RESTORE,
        ),
        denoising=DenoisingFacts(
            guidance=guidance,
            schedulers=schedules.names,
            default_steps=steps,
            default_guidance_scale=scale,
        ),
        latent_channels=autoencoder.channels,
        vae_factor=autoencoder.factor,
        size_multiple=autoencoder.factor,
        default_width=1024,
        default_height=1024,
        min_side=autoencoder.factor,
        max_pixels=2048 * 2048,
        references=ReferenceFacts(
            max_images=FLUX_2_FACTS.max_references,
            size_multiple=autoencoder.factor,
            min_side=64,
            max_ratio=8,
            sees_inpainted=True,
        ),
    )
