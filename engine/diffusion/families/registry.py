"""Finds the family of a pipeline's class name, and imports it when it is first needed.

Importing this module imports no diffusers; loading a checkpoint does.
"""

import difflib
import importlib
from typing import Protocol, cast

import torch

from engine.diffusion.families.family import Family
from engine.diffusion.families.options import LoadOptions
from engine.errors import CorruptFile, UnsupportedArchitecture
from engine.files.checkpoint_files import read_json
from engine.quantization.bitsandbytes_library import defer_bitsandbytes
from engine.weights.source import Checkpoint

_SD = "engine.diffusion.families.stable_diffusion:StableDiffusionFamily"
_SDXL = "engine.diffusion.families.stable_diffusion_xl:StableDiffusionXLFamily"
_UPSCALE = "engine.diffusion.families.stable_diffusion_upscale:StableDiffusionUpscaleFamily"
_SD3 = "engine.diffusion.families.stable_diffusion_3:StableDiffusion3Family"
_FLUX = "engine.diffusion.families.flux:FluxFamily"
_FLUX2 = "engine.diffusion.families.flux2:Flux2Family"
_PIXART = "engine.diffusion.families.pixart:PixArtFamily"
_QWEN_IMAGE = "engine.diffusion.families.qwen_image:QwenImageFamily"
_QWEN_IMAGE_EDIT = "engine.diffusion.families.qwen_image_edit:QwenImageEditFamily"
_Z_IMAGE = "engine.diffusion.families.z_image:ZImageFamily"

FAMILIES = {
    "StableDiffusionPipeline": _SD,
    "StableDiffusionImg2ImgPipeline": _SD,
    "StableDiffusionInpaintPipeline": _SD,
    "StableDiffusionInstructPix2PixPipeline": _SD,
    "StableDiffusionUpscalePipeline": _UPSCALE,
    "StableDiffusionXLPipeline": _SDXL,
    "StableDiffusionXLImg2ImgPipeline": _SDXL,
    "StableDiffusionXLInpaintPipeline": _SDXL,
    "StableDiffusion3Pipeline": _SD3,
    "StableDiffusion3Img2ImgPipeline": _SD3,
    "StableDiffusion3InpaintPipeline": _SD3,
    "FluxPipeline": _FLUX,
    "FluxImg2ImgPipeline": _FLUX,
    "FluxInpaintPipeline": _FLUX,
    "FluxKontextPipeline": _FLUX,
    "FluxFillPipeline": _FLUX,
    "Flux2Pipeline": _FLUX2,
    "Flux2KleinPipeline": _FLUX2,
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "QwenImagePipeline": _QWEN_IMAGE,
    "QwenImageEditPipeline": _QWEN_IMAGE_EDIT,
    "QwenImageEditPlusPipeline": _QWEN_IMAGE_EDIT,
    "QwenImageImg2ImgPipeline": _QWEN_IMAGE,
    "QwenImageInpaintPipeline": _QWEN_IMAGE,
    "ZImagePipeline": _Z_IMAGE,
    "ZImageImg2ImgPipeline": _Z_IMAGE,
    "ZImageInpaintPipeline": _Z_IMAGE,
}
"""The families by `_class_name` of model_index.json."""

INDEX = "model_index.json"


class LoadableFamily(Protocol):
    """The interface of the classes in `FAMILIES`."""

    @classmethod
    def load(cls, checkpoint: Checkpoint, options: LoadOptions) -> Family:
        """Load the checkpoint's components. Raises ModelLoadError if it cannot."""
        ...


def load_family(
    checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device, quantization: str = "none"
) -> Family:
    """Load an image model of kind `diffusers` or `single_file`.

    Args:
        dtype: the type of weights and activations; latents stay fp32.
        quantization: the format of the denoiser and of large text encoders
            (`ImageSettings.image_quantization`).

    Raises:
        UnsupportedArchitecture: no family serves it; the message names the nearest ones.
        ModelLoadError: it cannot be loaded.
    """
    options = LoadOptions(dtype=dtype, device=device, quantization=quantization)
    defer_bitsandbytes()
    return family_of(pipeline_name(checkpoint)).load(checkpoint, options)


def family_of(name: str) -> type[LoadableFamily]:
    """The class that serves checkpoints of a diffusers pipeline class.

    Raises:
        UnsupportedArchitecture: no class does.
    """
    target = FAMILIES.get(name)
    if target is None:
        nearest = difflib.get_close_matches(name, FAMILIES, n=3, cutoff=0.4)
        raise UnsupportedArchitecture(
            f"image model of class {name!r} is not supported; "
            f"{'the nearest supported ones are' if nearest else 'supported are'} "
            f"{', '.join(nearest or FAMILIES)}"
        )
    module, _, attribute = target.partition(":")
    return cast(type[LoadableFamily], getattr(importlib.import_module(module), attribute))


def pipeline_name(checkpoint: Checkpoint) -> str:
    """The `_class_name` in a folder's model_index.json, or the equivalent of a single file."""
    if checkpoint.layout == "diffusers":
        name = read_json(checkpoint.path / INDEX).get("_class_name")
        if not isinstance(name, str):
            raise CorruptFile(f"{INDEX} has no _class_name; fetch it again")
        return name
    if checkpoint.layout == "single_file":
        from engine.diffusion.families.single_file import layout_of

        return layout_of(checkpoint.path).pipeline
    raise UnsupportedArchitecture(
        f"{checkpoint.name!r} is not an image model; give a diffusers folder (with "
        f"model_index.json) or a single .safetensors file of Stable Diffusion"
    )
