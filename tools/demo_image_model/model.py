"""The parts of the built-in model, and their layout in a diffusers folder."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from kernels.isa import multiplies_bf16
from tools.demo_image_model.tokenizer import MAX_LENGTH, write_tokenizer

LATENT_CHANNELS = 4
TEXT_WIDTH = 128


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A text encoder of 0.7 M parameters: three causal layers over at most 32 tokens."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_LENGTH,
            projection_dim=TEXT_WIDTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(in_channels: int = LATENT_CHANNELS) -> UNet2DConditionModel:
    """A UNet of 4.3 M parameters with cross-attention at both resolutions."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=in_channels,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
    )


def build_noise_schedule() -> DDIMScheduler:
    """A v-prediction schedule that ends in pure noise (Lin et al. 2023, arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def ready_for_training(module: torch.nn.Module) -> torch.nn.Module:
    """Use channels last and, in the UNet, plain attention, which trains far faster on a CPU."""
    if isinstance(module, UNet2DConditionModel):
        module.set_attn_processor(AttnProcessor())
    channels_last: torch.nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return channels_last


def mixed_precision() -> torch.autocast:
    """A context with bf16 products if the processor has instructions for them, else fp32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16())


def load_vae(folder: Path) -> AutoencoderKL:
    """The trained autoencoder, fp32, frozen."""
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32)
    return vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def save_folder(
    folder: Path,
    *,
    text_encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
) -> None:
    """Write everything in fp16 as `StableDiffusionPipeline.save_pretrained` would."""
    write_tokenizer(folder / "tokenizer")
    for name, module in (("text_encoder", text_encoder), ("unet", unet), ("vae", vae)):
        module.to(torch.float16).save_pretrained(folder / name)
    build_noise_schedule().save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
