"""The request that makes one image again, by the names of the HTTP API; it is written into the
image's file."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from engine.contract.draw import (
    DrawParams,
    ImageParams,
    ImageTask,
    InpaintParams,
    MaskContent,
    PromptSyntax,
)
from server.images.convert import ImageOrder
from server.images.hires import hires_fields
from server.images.made_with import of_adapters

_WHERE_USED = (
    "num_inference_steps",
    "guidance_scale",
    "strength",
    "image_guidance_scale",
    "feather",
)
_UNLESS_DEFAULT: Mapping[str, Any] = {
    "negative_prompt": "",
    "guidance_rescale": 0.0,
    "guidance_start": 0.0,
    "guidance_end": 1.0,
    "clip_skip": 0,
    "soft_mask": False,
    "mask_content": MaskContent.ORIGINAL,
    "crop_to_mask": False,
}


def replay_fields(order: ImageOrder, seed: int, index: int = 0) -> dict[str, Any]:
    """A body that makes this image alone, for the same route and the same input images."""
    request, params = order.request, order.request.params
    fields: dict[str, Any] = {
        "model": request.model,
        "prompt": request.prompt,
        "size": f"{params.width}x{params.height}",
        "seed": seed,
        "scheduler": order.scheduler,
    }
    if params.task is not ImageTask.TEXT_TO_IMAGE:
        fields["task"] = params.task.value
    if params.prompt_syntax is not PromptSyntax.PLAIN:
        fields["prompt_syntax"] = params.prompt_syntax.value
    setting = request.setting_of(index)
    if request.loras:
        fields["loras"] = [{"name": use.name, "scale": use.scale} for use in setting]
    if files := of_adapters(order.made_with, [use.name for use in setting]):
        fields["made_with"] = files
    if isinstance(params, DrawParams) and params.hires is not None:
        fields["hires"] = hires_fields(params.hires, params, request.prompt)
    return fields | _params(params)


def _params(params: ImageParams) -> dict[str, Any]:
    fields = {name: getattr(params, name) for name in _WHERE_USED if hasattr(params, name)}
    for name, default in _UNLESS_DEFAULT.items():
        if getattr(params, name, default) != default:
            fields[name] = getattr(params, name)
    if isinstance(params, InpaintParams):
        if params.crop_to_mask:
            fields["crop_padding"] = params.crop_padding
        if params.outpaint is not None:
            fields["outpaint"] = asdict(params.outpaint)
    return fields
