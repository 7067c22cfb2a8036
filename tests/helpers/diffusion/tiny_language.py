"""Tiny random image models whose prompts are encoded by a language model, offline."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3Model,
)

from tests.helpers.diffusion.tiny_transformers import CHANNELS, WIDTH, stirred, vae

VISION_MARKS = {
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
}
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_MARKS.values())
SHIFTING = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 60}
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


def qwen_image_transformer(**overrides: Any) -> QwenImageTransformer2DModel:
    config = {
        "in_channels": 4 * CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "axes_dims_rope": (8, 12, 12),
    }
    return QwenImageTransformer2DModel(**{**config, **overrides}).eval()


def frame_vae(**overrides: Any) -> AutoencoderKLQwenImage:
    """Make a VAE of videos with `FACTOR` pixels per latent cell."""
    config = {
        "base_dim": 4,
        "z_dim": CHANNELS,
        "dim_mult": [1, 2, 2],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True],
    }
    return stirred(AutoencoderKLQwenImage(**{**config, **overrides})).eval()


def vision_language_model() -> Qwen2_5_VLForConditionalGeneration:
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": WIDTH,
        "fullatt_block_indexes": [1],
        "window_size": 56,
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e6}
    text = language_config(rope_parameters=rope, tie_word_embeddings=False)
    marks = {f"{name}_token_id": 256 + MARKS.index(mark) for name, mark in VISION_MARKS.items()}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def image_processor() -> Qwen2VLProcessor:
    return Qwen2VLProcessor(Qwen2VLImageProcessorPil(), qwen_tokenizer(), Qwen2VLVideoProcessor())


@dataclass
class QwenImageParts:
    """The components, as QwenImagePipeline names them."""

    pipeline: ClassVar[Any] = QwenImagePipeline
    scheduler: Any
    vae: AutoencoderKLQwenImage
    text_encoder: Qwen2_5_VLForConditionalGeneration
    tokenizer: Qwen2Tokenizer
    transformer: QwenImageTransformer2DModel


def qwen_image_parts(
    seed: int, transformer: dict[str, Any] | None = None, **scheduler: Any
) -> QwenImageParts:
    torch.manual_seed(seed)
    return QwenImageParts(
        scheduler=FlowMatchEulerDiscreteScheduler(**{**SHIFTING, **scheduler}),
        vae=frame_vae(),
        text_encoder=vision_language_model(),
        tokenizer=qwen_tokenizer(),
        transformer=stirred(qwen_image_transformer(**(transformer or {}))),
    )
