"""Writes a Stable Diffusion folder with random weights: the shape decides the speed.

    python -m loadtest.random_sd FOLDER --size sd15

`sd15` has the shape of Stable Diffusion 1.5 (a UNet of 860 M parameters, CLIP ViT-L's text encoder,
the factor-8 autoencoder): 2.1 GB in float16. `sdxl` has that of Stable Diffusion XL (a UNet of
2.6 B parameters, two text encoders): 6.9 GB. `tiny` and `tiny-xl` are for trying things out. The
tokenizer spells every word, so that no vocabulary is needed; texts are padded to 77 tokens.
"""

import argparse
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_MAX_TOKENS = 77


@dataclass(frozen=True, slots=True)
class TextShape:
    """The size of a text encoder."""

    width: int
    layers: int
    heads: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The values that differ between sizes; everything else is as in Stable Diffusion."""

    unet_channels: tuple[int, ...]
    unet_layers: int
    unet_heads: int | tuple[int, ...]
    vae_channels: tuple[int, ...]
    vae_layers: int
    texts: tuple[TextShape, ...]
    vocab_size: int
    norm_groups: int
    attends: tuple[bool, ...] = (True, True, True, False)
    """Whether the UNet attends to the text, by level."""
    unet_options: dict[str, Any] = field(default_factory=dict)
    """Further arguments of the UNet."""


def _xl(sample_size: int, depths: tuple[int, ...], text: int, number: int) -> dict[str, Any]:
    """The UNet's options for picture sizes and a pooled text of `text` numbers beside the step."""
    return {
        "sample_size": sample_size,
        "transformer_layers_per_block": depths,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": number,
        "projection_class_embeddings_input_dim": text + 6 * number,
    }


_CLIP_L, _CLIP_BIG_G = TextShape(768, 12, 12), TextShape(1280, 32, 20)
SHAPES = {
    "sd15": Shape((320, 640, 1280, 1280), 2, 8, (128, 256, 512, 512), 2, (_CLIP_L,), 49408, 32),
    "sdxl": Shape(
        (320, 640, 1280),
        2,
        (5, 10, 20),
        (128, 256, 512, 512),
        2,
        (_CLIP_L, _CLIP_BIG_G),
        49408,
        32,
        attends=(False, True, True),
        unet_options=_xl(128, (1, 2, 10), 1280, 256),
    ),
    "tiny": Shape(
        (16, 32), 1, 2, (8, 8, 16, 16), 1, (TextShape(32, 1, 2),), 100, 4, attends=(True, False)
    ),
    "tiny-xl": Shape(
        (16, 32),
        1,
        (1, 2),
        (8, 8, 16, 16),
        1,
        (TextShape(32, 1, 2), TextShape(48, 1, 2)),
        100,
        4,
        attends=(False, True),
        unet_options=_xl(16, (1, 2), 48, 8),
    ),
}


def write_random_model(folder: Path, size: str, *, dtype: str) -> None:
    """Make the components directly in `dtype` and save them as a diffusers folder.

    Raises ValueError for a size that is not in `SHAPES`.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

    if size not in SHAPES:
        raise ValueError(f"there is no size {size!r}; there are: {', '.join(SHAPES)}")
    shape = SHAPES[size]
    before = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        components = _models(shape)
    finally:
        torch.set_default_dtype(before)
    schedule = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    if len(shape.texts) > 1:
        pipeline = StableDiffusionXLPipeline(**components, scheduler=schedule)
    else:
        pipeline = StableDiffusionPipeline(
            **components,
            scheduler=schedule,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder)
    for text_encoder in folder.glob("text_encoder*/model.safetensors"):
        _name_as_published(text_encoder)


def _name_as_published(text_encoder: Path) -> None:
    """Give the text encoder the names that published checkpoints have, with `text_model.` in front.

    transformers 5 writes them without it; stable-diffusion.cpp finds only the published ones.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(text_encoder)
    named = {
        name
        if name.startswith(("text_model.", "text_projection."))
        else f"text_model.{name}": tensor
        for name, tensor in tensors.items()
    }
    save_file(named, text_encoder, metadata={"format": "pt"})


def _models(shape: Shape) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    unet = UNet2DConditionModel(
        **{"sample_size": 64} | shape.unet_options,
        block_out_channels=shape.unet_channels,
        layers_per_block=shape.unet_layers,
        down_block_types=_blocks("Down", shape.attends),
        up_block_types=_blocks("Up", shape.attends[::-1]),
        cross_attention_dim=sum(text.width for text in shape.texts),
        attention_head_dim=shape.unet_heads,  # the number of heads, in this family
        norm_num_groups=shape.norm_groups,
    )
    num_blocks = len(shape.vae_channels)
    vae = AutoencoderKL(
        block_out_channels=shape.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * num_blocks,
        up_block_types=("UpDecoderBlock2D",) * num_blocks,
        layers_per_block=shape.vae_layers,
        latent_channels=4,
        norm_num_groups=shape.norm_groups,
        sample_size=512,
    )
    return {"unet": unet, "vae": vae, **_text_parts(shape)}


def _blocks(kind: str, attends: tuple[bool, ...]) -> tuple[str, ...]:
    return tuple(f"{'CrossAttn' if one else ''}{kind}Block2D" for one in attends)


def _text_parts(shape: Shape) -> dict[str, Any]:
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    letters = string.ascii_lowercase + string.digits + ",.'!-"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=[], model_max_length=_MAX_TOKENS, pad_token="<|endoftext|>"
    )
    parts: dict[str, Any] = {}
    for text, suffix, kind in zip(
        shape.texts, ("", "_2"), (CLIPTextModel, CLIPTextModelWithProjection), strict=False
    ):
        config = CLIPTextConfig(
            vocab_size=shape.vocab_size,
            hidden_size=text.width,
            intermediate_size=4 * text.width,
            projection_dim=text.width,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            max_position_embeddings=_MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        parts |= {f"tokenizer{suffix}": tokenizer, f"text_encoder{suffix}": kind(config)}
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.random_sd")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SHAPES), default="sd15")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    options = parser.parse_args()
    write_random_model(options.folder, options.size, dtype=options.dtype)


if __name__ == "__main__":
    main()
