"""Tiny random FLUX.2 components, tokenizers and chat templates included, offline."""

import copy
import json
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from engine.contract.draw import GuidanceKind
from engine.diffusion.families.flux2 import MISTRAL3, QWEN3, Flux2Autoencoder, Flux2Family
from engine.diffusion.prompt.language_model import LanguageModelEncoder
from tests.helpers.diffusion.tiny_transformers import stirred

CPU = torch.device("cpu")
WIDTH = 64
"""The width of the text encoder and of the transformer."""
VAE_CHANNELS = 4
CHANNELS, FACTOR = 4 * VAE_CHANNELS, 8
"""The channels of a latent cell, and its pixels on a side."""
TOKENS = 240
"""The length of prompts, each letter a token; dev's system message takes 170 of them."""
QWEN3_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
MISTRAL3_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}"
    "{{- '[SYSTEM_PROMPT]' + message['content'][0]['text'] + '[/SYSTEM_PROMPT]' }}"
    "{%- else %}{{- '[INST]' }}{%- for block in message['content'] %}{{- block['text'] }}"
    "{%- endfor %}{{- '[/INST]' }}{%- endif %}{%- endfor %}"
)
"""What the published templates write for the messages of diffusers' pipelines."""


@dataclass
class Flux2Parts:
    """The components, as diffusers' pipelines name them."""

    scheduler: Any
    vae: AutoencoderKLFlux2
    text_encoder: Any
    tokenizer: Any
    transformer: Flux2Transformer2DModel
    is_klein: bool
    is_distilled: bool

    @property
    def guidance(self) -> GuidanceKind:
        if not self.is_klein:
            return GuidanceKind.DISTILLED
        return GuidanceKind.NONE if self.is_distilled else GuidanceKind.CLASSIFIER_FREE

    def family(self) -> Flux2Family:
        """Make our family over copies of the same weights."""
        tokenizer = self.tokenizer if self.is_klein else self.tokenizer.tokenizer
        encoder = LanguageModelEncoder(
            tokenizer,
            copy.deepcopy(self.text_encoder),
            **(QWEN3 if self.is_klein else MISTRAL3),
            max_sequence_length=TOKENS,
        )
        return Flux2Family(
            transformer=copy.deepcopy(self.transformer),
            autoencoder=Flux2Autoencoder(copy.deepcopy(self.vae), dtype=torch.float32, device=CPU),
            encoder=encoder,
            scheduler_config=json.loads(self.scheduler.to_json_string()),
            guidance=self.guidance,
            dtype=torch.float32,
            device=CPU,
        )

    def pipeline(self, **changes: Any) -> Any:
        """Make diffusers' pipeline, without progress output."""
        names = ("scheduler", "vae", "text_encoder", "tokenizer", "transformer")
        parts = {name: getattr(self, name) for name in names} | changes
        if self.is_klein:
            pipeline = Flux2KleinPipeline(**parts, is_distilled=self.is_distilled)
        else:
            pipeline = Flux2Pipeline(**parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def flux2_parts(
    seed: int, kind: str = "klein", *, num_text_layers: int = 32, **scheduler: Any
) -> Flux2Parts:
    """Make components.

    Args:
        kind: `klein`, `klein-base` or `dev`.
    """
    torch.manual_seed(seed)
    is_klein = kind != "dev"
    tokenizer = qwen_tokenizer() if is_klein else pixtral_processor()
    text = qwen3(len(tokenizer), num_text_layers) if is_klein else mistral3(num_text_layers)
    dynamic = {"use_dynamic_shifting": True, "shift": 3.0}
    return Flux2Parts(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**dynamic, **scheduler}),
        vae=vae(),
        text_encoder=text,
        tokenizer=tokenizer,
        transformer=stirred(flux2_transformer(guidance_embeds=not is_klein)),
        is_klein=is_klein,
        is_distilled=kind == "klein",
    )


def flux2_transformer(**overrides: Any) -> Flux2Transformer2DModel:
    config = {
        "in_channels": CHANNELS,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": 3 * WIDTH,
        "timestep_guidance_channels": 32,
        "axes_dims_rope": (8, 8, 8, 8),
    }
    return Flux2Transformer2DModel(**{**config, **overrides}).eval()


def vae() -> AutoencoderKLFlux2:
    blocks = 3
    made = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8,) * blocks,
        layers_per_block=1,
        latent_channels=VAE_CHANNELS,
        norm_num_groups=2,
        sample_size=32,
    ).eval()
    made.bn.running_mean.normal_()
    made.bn.running_var.uniform_(0.5, 2.0)
    return made


def _text_config(num_layers: int) -> dict[str, Any]:
    return {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 1024,
    }


def qwen3(vocab_size: int, num_layers: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab_size, **_text_config(num_layers))).eval()


def mistral3(num_layers: int) -> Mistral3ForConditionalGeneration:
    text = {"model_type": "mistral", "vocab_size": 512, **_text_config(num_layers)}
    vision = {
        "model_type": "pixtral",
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    return Mistral3ForConditionalGeneration(
        Mistral3Config(text_config=text, vision_config=vision, image_token_index=10)
    ).eval()


def _letters() -> dict[str, int]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {letter: number for number, letter in enumerate(alphabet)}


def qwen_tokenizer() -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(vocab=_letters() | {"<|endoftext|>": 256}, merges=[])
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]}
    )
    tokenizer.chat_template = QWEN3_TEMPLATE
    return tokenizer


def pixtral_processor() -> PixtralProcessor:
    plain = Tokenizer(models.BPE(vocab=_letters(), merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    images = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]
    plain.add_special_tokens([AddedToken(name, special=True) for name in special + images])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", pad_token="<pad>", padding_side="left"
    )
    tokenizer.chat_template = MISTRAL3_TEMPLATE
    return PixtralProcessor(
        image_processor=PixtralImageProcessor(),
        tokenizer=tokenizer,
        chat_template=MISTRAL3_TEMPLATE,
    )


def noise(seed: int, height: int = 64, width: int = 96) -> torch.Tensor:
    """Draw the latents of a picture of this size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, CHANNELS, height // FACTOR, width // FACTOR), generator=generator)
