"""Tiny random image models whose prompts are encoded by a language model, offline."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3Model

from tests.helpers.diffusion.tiny_transformers import CHANNELS, WIDTH, stirred, vae

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""What Qwen3's template makes of messages of users when the answer may begin with thoughts."""


def qwen_tokenizer() -> Qwen2Tokenizer:
    """Make a tokenizer of bytes with Qwen's marks."""
    letters = sorted(ByteLevel.alphabet())
    vocab = {letter: number for number, letter in enumerate((*letters, *MARKS))}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[])
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS[1:])})
    tokenizer.chat_template = _CHAT
    return tokenizer


def language_config(**changes: Any) -> dict[str, Any]:
    """Give the numbers that Qwen's language models share."""
    return {
        "vocab_size": 512,
        "hidden_size": WIDTH,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        # Larger than usual, or prompts would hardly differ.
        "initializer_range": 0.2,
        **changes,
    }


def z_image_transformer(**overrides: Any) -> ZImageTransformer2DModel:
    config = {
        "in_channels": CHANNELS,
        "dim": WIDTH,
        "n_layers": 2,
        "n_refiner_layers": 1,
        "n_heads": 2,
        "n_kv_heads": 2,
        "cap_feat_dim": WIDTH,
        "axes_dims": [8, 12, 12],
        "axes_lens": [1024, 16, 16],
    }
    return ZImageTransformer2DModel(**{**config, **overrides}).eval()


@dataclass
class ZImageParts:
    """The components, as ZImagePipeline names them."""

    pipeline: ClassVar[Any] = ZImagePipeline
    scheduler: Any
    vae: AutoencoderKL
    text_encoder: Qwen3Model
    tokenizer: Qwen2Tokenizer
    transformer: ZImageTransformer2DModel


def z_image_parts(
    seed: int, transformer: dict[str, Any] | None = None, **scheduler: Any
) -> ZImageParts:
    """Make Z-Image, or Turbo with `shift=3.0`."""
    torch.manual_seed(seed)
    return ZImageParts(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **scheduler}),
        vae=vae(),
        text_encoder=Qwen3Model(Qwen3Config(**language_config(head_dim=16))).eval(),
        tokenizer=qwen_tokenizer(),
        transformer=stirred(z_image_transformer(**(transformer or {}))),
    )
