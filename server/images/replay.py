"""The request that makes one image again, by the names of the HTTP API; it is written into the
image's file."""

from dataclasses import asdict, fields
from typing import Any

from engine.contract.draw import DrawParams, ImageParams, ImageTask, InpaintParams, PromptSyntax
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
_UNLESS_DEFAULT = (
    "negative_prompt",
    "guidance_rescale",
    "guidance_start",
    "guidance_end",
    "clip_skip",
    "soft_mask",
    "mask_content",
    "crop_to_mask",
)


def replay_fields(order: ImageOrder, seed: int, index: int = 0) -> dict[str, Any]:
    """A body that makes this image alone, for the same route and the same input images."""
    request, params = order.request, order.request.params
    found: dict[str, Any] = {
        "model": request.model,
        "prompt": request.prompt,
        "size": f"{params.width}x{params.height}",
        "seed": seed,
        "scheduler": order.scheduler,
    }
    if params.task is not ImageTask.TEXT_TO_IMAGE:
        found["task"] = params.task.value
    if params.prompt_syntax is not PromptSyntax.PLAIN:
        found["prompt_syntax"] = params.prompt_syntax.value
    setting = request.setting_of(index)
    if request.loras:
        found["loras"] = [{"name": use.name, "scale": use.scale} for use in setting]
    if files := of_adapters(order.made_with, [use.name for use in setting]):
        found["made_with"] = files
    if isinstance(params, DrawParams) and params.hires is not None:
        found["hires"] = hires_fields(params.hires, params, request.prompt)
    return found | _params(params)


def _params(params: ImageParams) -> dict[str, Any]:
    values = {each.name: getattr(params, each.name) for each in fields(params)}
    defaults = {each.name: each.default for each in fields(params)}
    names = [name for name in _WHERE_USED if name in values]
    names += [name for name in _UNLESS_DEFAULT if values.get(name) != defaults.get(name)]
    found = {name: values[name] for name in names}
    if isinstance(params, InpaintParams):
        if params.crop_to_mask:
            found["crop_padding"] = params.crop_padding
        if params.outpaint is not None:
            found["outpaint"] = asdict(params.outpaint)
    return found
