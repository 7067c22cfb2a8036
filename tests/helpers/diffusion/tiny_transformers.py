"""Tiny random SD3 and FLUX components, tokenizers included: offline, milliseconds to build."""

import string
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from engine.contract.draw import ImageTask
from engine.diffusion.families.family import Row
from engine.diffusion.prompt.text import PromptText
from tests.helpers.diffusion.tiny_pipelines import clip_config, clip_tokenizer, tiny_vae

WIDTH = 64
"""The sizes of T5 and of the transformers, the least that four-bit weights need."""
CHANNELS = 16
FACTOR = 4
"""The pixels per latent cell of `vae`."""


def t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0 - i / 100) for i, letter in enumerate(string.ascii_lowercase)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


def _clip_config(width: int) -> CLIPTextConfig:
    usual = {"initializer_range": 0.02, "initializer_factor": 1.0}
    changes = {"projection_dim": width, "num_hidden_layers": 4}
    return clip_config(clip_tokenizer(), width, **changes, **usual)


def t5_encoder() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=64, d_model=WIDTH, d_kv=8, d_ff=128, num_layers=2, num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    ).eval()  # fmt: skip


def vae() -> AutoencoderKL:
    scale = {"scaling_factor": 1.5, "shift_factor": 0.06}
    without = {"use_quant_conv": False, "use_post_quant_conv": False}
    return tiny_vae(8, 8, 8, groups=2, latent_channels=CHANNELS, **scale, **without)


def sd3_transformer(**overrides: Any) -> SD3Transformer2DModel:
    config = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": CHANNELS,
        "out_channels": CHANNELS,
        "num_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "caption_projection_dim": WIDTH,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 16,
    }
    return SD3Transformer2DModel(**{**config, **overrides}).eval()


def flux_transformer(**overrides: Any) -> FluxTransformer2DModel:
    config = {
        "patch_size": 1,
        "in_channels": 4 * CHANNELS,
        "out_channels": 4 * CHANNELS,
        "num_layers": 1,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": 12,
        "axes_dims_rope": (8, 12, 12),
    }
    return FluxTransformer2DModel(**{**config, **overrides}).eval()


def pixart_transformer(**overrides: Any) -> PixArtTransformer2DModel:
    config = {
        "sample_size": 8,
        "in_channels": CHANNELS,
        "out_channels": 2 * CHANNELS,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 32,
        "cross_attention_dim": WIDTH,
        "caption_channels": WIDTH,
    }
    return PixArtTransformer2DModel(**{**config, **overrides}).eval()


@dataclass
class PixArtParts:
    """The components, as PixArtSigmaPipeline names them."""

    pipeline: ClassVar[Any] = PixArtSigmaPipeline
    scheduler: Any
    vae: AutoencoderKL
    text_encoder: T5EncoderModel
    tokenizer: T5Tokenizer
    transformer: PixArtTransformer2DModel


def pixart_parts(seed: int, **transformer: Any) -> PixArtParts:
    torch.manual_seed(seed)
    return PixArtParts(
        scheduler=DPMSolverMultistepScheduler(
            beta_schedule="linear", beta_start=0.0001, beta_end=0.002
        ),
        vae=tiny_vae(8, 8, 8, groups=2, latent_channels=CHANNELS, scaling_factor=1.5),
        text_encoder=t5_encoder(),
        tokenizer=t5_tokenizer(),
        transformer=stirred(pixart_transformer(**transformer)),
    )


@dataclass
class Sd3Parts:
    """The components, as StableDiffusion3Pipeline names them."""

    scheduler: Any
    vae: AutoencoderKL
    text_encoder: CLIPTextModelWithProjection
    tokenizer: CLIPTokenizer
    text_encoder_2: CLIPTextModelWithProjection
    tokenizer_2: CLIPTokenizer
    text_encoder_3: T5EncoderModel | None
    tokenizer_3: T5Tokenizer | None
    transformer: SD3Transformer2DModel


@dataclass
class FluxParts:
    """The components, as FluxPipeline names them."""

    scheduler: Any
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    text_encoder_2: T5EncoderModel
    tokenizer_2: T5Tokenizer
    transformer: FluxTransformer2DModel


def sd3_parts(seed: int, *, with_t5: bool = True, **scheduler: Any) -> Sd3Parts:
    torch.manual_seed(seed)
    return Sd3Parts(
        scheduler=FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **scheduler}),
        vae=vae(),
        text_encoder=CLIPTextModelWithProjection(_clip_config(8)).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(_clip_config(12)).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder() if with_t5 else None,
        tokenizer_3=t5_tokenizer() if with_t5 else None,
        transformer=stirred(sd3_transformer()),
    )


def flux_parts(seed: int, transformer: dict[str, Any] | None = None, **scheduler: Any) -> FluxParts:
    torch.manual_seed(seed)
    return FluxParts(
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
        vae=vae(),
        text_encoder=CLIPTextModel(_clip_config(12)).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(),
        tokenizer_2=t5_tokenizer(),
        transformer=stirred(flux_transformer(**(transformer or {}))),
    )


def pipeline_of(parts: Any, kind: Any = None, **changes: Any) -> Any:
    """Make diffusers' pipeline over the parts, without progress output."""
    usual = StableDiffusion3Pipeline if isinstance(parts, Sd3Parts) else FluxPipeline
    pipeline = (kind or getattr(parts, "pipeline", usual))(**vars(parts) | changes)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_with(pipeline: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Run a diffusers pipeline once and return the final latents and the picture, in [-1, 1]."""
    steps: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        steps.append(tensors["latents"])
        return {}

    images = pipeline(**arguments, callback_on_step_end=keep, output_type="pt").images
    return steps[-1], images * 2 - 1


def draw_with_callback(pipeline: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the same with a pipeline that has the older kind of callback."""
    steps: list[torch.Tensor] = []

    def keep(step: int, timestep: Any, latents: torch.Tensor) -> None:
        steps.append(latents)

    images = pipeline(**arguments, callback=keep, output_type="pt").images
    return steps[-1], images * 2 - 1


def noise(seed: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """Draw the latents of a picture of this size."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((1, CHANNELS, height // FACTOR, width // FACTOR), generator=generator)


def assert_drawn(
    family: Any, ours: torch.Tensor, theirs: torch.Tensor, picture: torch.Tensor, seed: int
) -> None:
    """Check the final latents and their picture, in fp32, over a few steps."""
    assert (ours - theirs).abs().max() < 1e-4, f"{seed=}"
    assert (family.decode(ours) - picture).abs().max() < 1e-4, f"{seed=}"


def stirred(model: Any) -> Any:
    """Make zero-initialised weights random, so that every part of the input has an effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def predict(family: Any) -> torch.Tensor:
    """Predict the noise of one row, the same one for every family."""
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn((1, CHANNELS, 32 // FACTOR, 32 // FACTOR), generator=generator)
    prompt = family.encode_prompts([PromptText(text="a red star")])[0]
    row = Row(latents=latents, timestep=torch.tensor(600.0), prompt=prompt, guidance_scale=3.0)
    prediction: torch.Tensor = family.denoise(family.denoiser_key(ImageTask.TEXT_TO_IMAGE), [row])
    return prediction
