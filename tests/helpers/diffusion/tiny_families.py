"""Every family over tiny random components."""

import copy
import json
from pathlib import Path
from typing import Any

import torch

from engine.diffusion.families.autoencoder import Autoencoder
from engine.diffusion.families.flux import FluxFamily
from engine.diffusion.families.frame_autoencoder import FrameAutoencoder
from engine.diffusion.families.pixart import PixArtFamily, PixArtPromptEncoder
from engine.diffusion.families.qwen_image import QwenImageFamily
from engine.diffusion.families.qwen_image import prompt_encoder as qwen_image_encoder
from engine.diffusion.families.qwen_image_edit import (
    EDITINGS,
    QwenImageEditFamily,
    sighted_encoder,
)
from engine.diffusion.families.registry import load_family
from engine.diffusion.families.stable_diffusion_3 import StableDiffusion3Family
from engine.diffusion.families.z_image import ZImageFamily
from engine.diffusion.families.z_image import prompt_encoder as z_image_encoder
from engine.diffusion.prompt.clip import ClipPromptEncoder
from engine.diffusion.prompt.t5 import T5PromptEncoder
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.tiny_flux2 import flux2_parts
from tests.helpers.diffusion.tiny_language import (
    image_processor,
    qwen_image_parts,
    z_image_parts,
)
from tests.helpers.diffusion.tiny_pipelines import tiny_parts
from tests.helpers.diffusion.tiny_transformers import flux_parts, pixart_parts, sd3_parts
from tests.helpers.diffusion.tiny_upscaler import upscaler_of, upscaler_parts

FAMILIES = ("sd", "sdxl", "sd3", "flux", "flux2", "z_image", "qwen_image", "pixart")
UPSCALER = "upscaler"
"""The family that does not draw from a text alone."""
T5_TOKENS = 24
"""The number of T5's tokens in a prompt of FLUX."""
CPU = torch.device("cpu")


def parts_of(kind: str, seed: int) -> Any:
    if kind in ("sd", "sdxl"):
        return tiny_parts(seed, xl=kind == "sdxl")
    if kind == UPSCALER:
        return upscaler_parts(seed)
    if kind == "flux2":
        return flux2_parts(seed, "dev")
    if kind == "z_image":
        return z_image_parts(seed)
    if kind == "pixart":
        return pixart_parts(seed)
    if kind == "qwen_image":
        return qwen_image_parts(seed)
    return sd3_parts(seed) if kind == "sd3" else flux_parts(seed, {"guidance_embeds": True})


def load_folder(
    folder: Path, quantization: str = "none", dtype: torch.dtype = torch.float32
) -> Any:
    checkpoint = Checkpoint("diffusers", folder, "tiny")
    return load_family(checkpoint, dtype=dtype, device=CPU, quantization=quantization)


def family_of(kind: str, parts: Any, *, edits: bool = False) -> Any:
    """Make our family over the parts.

    Args:
        edits: whether FLUX takes a reference, as Kontext does, and Qwen-Image several.
    """
    if kind in ("sd", "sdxl", "flux2"):
        return parts.family()
    if kind == UPSCALER:
        return upscaler_of(parts)
    wrapper = FrameAutoencoder if kind == "qwen_image" else Autoencoder
    common = {
        "transformer": parts.transformer,
        "autoencoder": wrapper(copy.deepcopy(parts.vae), dtype=torch.float32, device=CPU),
        "scheduler_config": json.loads(parts.scheduler.to_json_string()),
        "dtype": torch.float32,
        "device": CPU,
    }
    if kind == "flux":
        clip = ClipPromptEncoder(parts.tokenizer, parts.text_encoder, final_norm=True)
        t5 = T5PromptEncoder(parts.tokenizer_2, parts.text_encoder_2, max_sequence_length=T5_TOKENS)
        return FluxFamily(clip=clip, t5=t5, edits=edits, **common)
    if kind == "pixart":
        t5 = PixArtPromptEncoder(parts.tokenizer, parts.text_encoder, max_sequence_length=300)
        return PixArtFamily(t5=t5, **common)
    if kind == "z_image":
        encoder = z_image_encoder(parts.tokenizer, parts.text_encoder)
        return ZImageFamily(encoder=encoder, **common)
    if kind == "qwen_image" and edits:
        editing = EDITINGS["QwenImageEditPlusPipeline"]
        language, processor = parts.text_encoder.model, image_processor().image_processor
        common["encoder"] = sighted_encoder(parts.tokenizer, language, processor, editing)
        return QwenImageEditFamily(editing=editing, defaults={"size": 64}, **common)
    if kind == "qwen_image":
        language = parts.text_encoder.model.language_model
        return QwenImageFamily(encoder=qwen_image_encoder(parts.tokenizer, language), **common)
    pairs = ((parts.tokenizer, parts.text_encoder), (parts.tokenizer_2, parts.text_encoder_2))
    first, second = (ClipPromptEncoder(*pair, final_norm=False, default_skip=1) for pair in pairs)
    third = None
    if parts.text_encoder_3 is not None:
        third = T5PromptEncoder(parts.tokenizer_3, parts.text_encoder_3, max_sequence_length=256)
    return StableDiffusion3Family(clips=(first, second), t5=third, **common)
