"""Writes a Stable Diffusion folder with random weights: the shape decides the speed.

    python -m loadtest.random_sd FOLDER --size sd15

`sd15` has the shape of Stable Diffusion 1.5 (a UNet of 860 M parameters, CLIP ViT-L's text encoder,
the factor-8 autoencoder): 2.1 GB in float16. `tiny` is for trying things out. The tokenizer spells
every word, so that no vocabulary is needed; texts are padded to 77 tokens as usual.
"""

import argparse
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MAX_TOKENS = 77


@dataclass(frozen=True, slots=True)
class Shape:
    """The values that differ between sizes; everything else is as in Stable Diffusion 1.x."""

    unet_channels: tuple[int, ...]
    unet_layers: int
    unet_heads: int
    vae_channels: tuple[int, ...]
    vae_layers: int
    text_width: int
    text_layers: int
    text_heads: int
    vocab_size: int
    norm_groups: int


SHAPES = {
    "sd15": Shape((320, 640, 1280, 1280), 2, 8, (128, 256, 512, 512), 2, 768, 12, 12, 49408, 32),
    "tiny": Shape((16, 32), 1, 2, (8, 8, 16, 16), 1, 32, 1, 2, 100, 4),
}


def write_random_model(folder: Path, size: str, *, dtype: str) -> None:
    """Make the components directly in `dtype` and save them as a diffusers folder.

    Raises ValueError for a size that is not in `SHAPES`.
    """
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

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
    pipeline = StableDiffusionPipeline(
        **components,
        scheduler=schedule,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    _name_as_published(folder / "text_encoder" / "model.safetensors")


def _name_as_published(text_encoder: Path) -> None:
    """Give the text encoder the names that published checkpoints have, with `text_model.` in front.

    transformers 5 writes them without it; stable-diffusion.cpp finds only the published ones.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(text_encoder)
    named = {f"text_model.{name.removeprefix('text_model.')}": tensors[name] for name in tensors}
    save_file(named, text_encoder, metadata={"format": "pt"})


def _models(shape: Shape) -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    levels = len(shape.unet_channels) - 1
    unet = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=shape.unet_channels,
        layers_per_block=shape.unet_layers,
        down_block_types=("CrossAttnDownBlock2D",) * levels + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * levels,
        cross_attention_dim=shape.text_width,
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


def _text_parts(shape: Shape) -> dict[str, Any]:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + ",.'!-"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(
        vocab=vocab, merges=[], model_max_length=_MAX_TOKENS, pad_token="<|endoftext|>"
    )
    config = CLIPTextConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.text_width,
        intermediate_size=4 * shape.text_width,
        projection_dim=shape.text_width,
        num_hidden_layers=shape.text_layers,
        num_attention_heads=shape.text_heads,
        max_position_embeddings=_MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return {"tokenizer": tokenizer, "text_encoder": CLIPTextModel(config)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.random_sd")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=sorted(SHAPES), default="sd15")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    options = parser.parse_args()
    write_random_model(options.folder, options.size, dtype=options.dtype)


if __name__ == "__main__":
    main()
