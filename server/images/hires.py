"""The second pass of a request to draw: converts its fields to the engine's, and back."""

from collections.abc import Mapping
from typing import Any

from engine.contract.draw import (
    DenoisingFacts,
    DrawParams,
    Enlarging,
    HiresPass,
    ImageModelInfo,
    ImageTask,
)
from engine.errors import UnsupportedFeature
from server.images.limits import Size, check_steps, drawing_size, offered_scheduler, parse_size
from server.protocol.hires import HiresFields

DEFAULT_SCALE, DEFAULT_STRENGTH = 2.0, 0.7

LABELS: Mapping[Enlarging, str] = {
    Enlarging.LATENT: "Latent",
    Enlarging.LATENT_ANTIALIASED: "Latent (antialiased)",
    Enlarging.LATENT_BICUBIC: "Latent (bicubic)",
    Enlarging.LATENT_BICUBIC_ANTIALIASED: "Latent (bicubic antialiased)",
    Enlarging.LATENT_NEAREST: "Latent (nearest)",
    Enlarging.LATENT_NEAREST_EXACT: "Latent (nearest-exact)",
    Enlarging.LANCZOS: "Lanczos",
    Enlarging.NEAREST: "Nearest",
}
"""A1111's names of upscalers."""


def hires_pass(
    fields: HiresFields,
    first: DrawParams,
    prompt: str,
    info: ImageModelInfo,
    denoising: DenoisingFacts,
) -> HiresPass:
    """The pass that follows the first.

    Args:
        prompt: the prompt of the first pass, without tags.

    Raises:
        InvalidParameter: a value does not fit the model or the first pass.
        UnsupportedFeature: the model cannot start from an image.
    """
    if ImageTask.IMAGE_TO_IMAGE not in info.tasks:
        raise UnsupportedFeature(
            f"{info.model} does not support {ImageTask.IMAGE_TO_IMAGE.value}, which the second "
            "pass needs; leave hires out",
            param="hires",
        )
    width, height = _size(fields, (first.width, first.height), info)
    strength = DEFAULT_STRENGTH if fields.strength is None else fields.strength
    scheduler = offered_scheduler(
        fields.scheduler, info.model, denoising.schedulers, param="hires.scheduler"
    )
    guidance = fields.guidance_scale
    negative = fields.negative_prompt
    found = HiresPass(
        width=width,
        height=height,
        enlarging=Enlarging(fields.upscaler or Enlarging.LATENT),
        num_inference_steps=fields.num_inference_steps or first.num_inference_steps,
        strength=strength,
        guidance_scale=first.guidance_scale if guidance is None else guidance,
        scheduler=scheduler or first.scheduler,
        prompt=fields.prompt or prompt,
        negative_prompt=first.negative_prompt if negative is None else negative,
    )
    check_steps(found.num_inference_steps, strength, param="hires.strength")
    return found


def hires_fields(hires: HiresPass, first: DrawParams, prompt: str) -> dict[str, Any]:
    """The fields that request this pass again.

    Args:
        prompt: the prompt of the first pass.
    """
    fields: dict[str, Any] = {
        "size": f"{hires.width}x{hires.height}",
        "upscaler": hires.enlarging.value,
        "strength": hires.strength,
        "num_inference_steps": hires.num_inference_steps,
        "guidance_scale": hires.guidance_scale,
    }
    if hires.scheduler is not None and hires.scheduler != first.scheduler:
        fields["scheduler"] = hires.scheduler
    if hires.prompt != prompt:
        fields["prompt"] = hires.prompt
    if hires.negative_prompt != first.negative_prompt:
        fields["negative_prompt"] = hires.negative_prompt
    return fields


def _size(fields: HiresFields, first: Size, info: ImageModelInfo) -> Size:
    asked = parse_size(fields.size, param="hires.size")
    if asked is not None:
        return drawing_size(asked, info, param="hires.size")
    scale = DEFAULT_SCALE if fields.scale is None else fields.scale
    multiple = info.size_multiple
    width, height = (int(side * scale) // multiple * multiple for side in first)
    param = "hires" if fields.scale is None else "hires.scale"
    return drawing_size((width, height), info, param=param)


def enlarging_of(label: str) -> Enlarging | None:
    """The way of enlarging with A1111's name, in any case, or with ours; None if there is none of
    that name."""
    wanted = label.lower()
    for enlarging, name in LABELS.items():
        if wanted in (name.lower(), enlarging.value):
            return enlarging
    return None


def check_same_adapters(tags: Mapping[str, float], of_hires: Mapping[str, float]) -> None:
    """Refuse adapters of the second pass that differ from the first one's.

    Raises:
        UnsupportedFeature: they differ.
    """
    if of_hires and of_hires != tags:
        raise UnsupportedFeature(
            "both passes use the adapters of prompt; name the same ones in hires.prompt, or none",
            param="hires.prompt",
        )
