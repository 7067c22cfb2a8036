"""Tiny random components of Stable Diffusion's upscaler, offline."""

import copy

import torch
from diffusers import DDPMScheduler

from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.stable_diffusion_upscale import StableDiffusionUpscaleFamily
from tests.helpers.diffusion.tiny_pipelines import CPU, Parts, tiny_parts, tiny_unet, tiny_vae

SCALE = 4
NUM_LEVELS = 100


def upscaler_parts(seed: int = 11) -> Parts:
    """Make components of the real model's shape: a level of noise as an input, layers that attend
    to the prompt alone, a VAE of factor 4."""
    torch.manual_seed(seed)
    parts = tiny_parts(seed, prediction_type="v_prediction")
    parts.unet = tiny_unet(7, num_class_embeds=NUM_LEVELS, only_cross_attention=(False, True))
    # Embeddings of levels are small at first, and would hardly matter.
    parts.unet.class_embedding.weight.data *= 20
    parts.vae = tiny_vae(8, 8, 16, scaling_factor=0.08333)
    return parts


def low_res_scheduler() -> DDPMScheduler:
    """Make the scheduler of the small picture's noise."""
    return DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.0001, beta_end=0.02)


def upscaler_of(parts: Parts) -> StableDiffusionUpscaleFamily:
    """Make our family over copies of the same weights."""
    vae = copy.deepcopy(parts.vae)
    return StableDiffusionUpscaleFamily(
        unets={"unet": copy.deepcopy(parts.unet)},
        autoencoder=Autoencoder(vae, dtype=vae.dtype, device=CPU),
        encoders=[StableDiffusionUpscaleFamily.prompt_encoder(parts.tokenizer, parts.text_encoder)],
        scheduler_config={**parts.scheduler.config, "_class_name": type(parts.scheduler).__name__},
        low_res_scheduler_config=low_res_scheduler().config,
        max_noise_level=60,
        device=CPU,
    )
