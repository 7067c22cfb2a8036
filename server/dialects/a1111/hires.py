"""A1111's "hires fix": converts its fields to `hires` of our route. All functions are pure."""

import math
from typing import Any

from engine.contract.draw import Enlarging, ImageModelInfo, num_steps_at
from engine.errors import InvalidParameter, UnsupportedFeature
from server.dialects.a1111.protocol import Txt2ImgRequest
from server.dialects.a1111.samplers import find_scheduler
from server.images.hires import LABELS, enlarging_of
from server.protocol.file_fields import MAX_STEPS

_SAME_SAMPLER = ("", "Use same sampler")
_SAME_SCHEDULER = ("", "Use same scheduler")
_SAME_CHECKPOINT = ("", "None", "Use same checkpoint")
_PLAIN = "none"
"""The upscaler that only resizes."""


def hires_body(body: Txt2ImgRequest, info: ImageModelInfo) -> dict[str, Any]:
    """The fields of the second pass.

    Raises:
        InvalidParameter, UnsupportedFeature: a field is refused.
    """
    _check_first_pass(body)
    fields = {
        "upscaler": _upscaler(body.hr_upscaler),
        "strength": body.strength,
        "num_inference_steps": _num_steps(body, info),
        "guidance_scale": body.hr_cfg,
        "scheduler": _scheduler(body, info),
        "prompt": body.hr_prompt or None,
        "negative_prompt": body.hr_negative_prompt or None,
        **_size(body, info),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _check_first_pass(body: Txt2ImgRequest) -> None:
    """Refuse fields of the first pass that are not supported.

    Raises:
        UnsupportedFeature: the second pass has its own checkpoint, or the first size has its oldest
            names.
    """
    if (body.hr_checkpoint_name or "") not in _SAME_CHECKPOINT:
        raise UnsupportedFeature(
            "hr_checkpoint_name is not supported here, because both passes use one model; send "
            "the image to img2img with that checkpoint",
            param="hr_checkpoint_name",
        )
    if body.firstphase_width or body.firstphase_height:
        raise UnsupportedFeature(
            "firstphase_width and firstphase_height are not supported here; give the first pass's "
            "size as width and height, and the result's as hr_resize_x and hr_resize_y",
            param="firstphase_width" if body.firstphase_width else "firstphase_height",
        )


def _upscaler(name: str | None) -> str | None:
    if not name:
        return None
    if name.lower() == _PLAIN:
        return Enlarging.LANCZOS.value
    found = enlarging_of(name)
    if found is None:
        raise UnsupportedFeature(
            f"hr_upscaler must be one of {', '.join(LABELS.values())} here; for another upscaler, "
            "send the image to extra-single-image and its result to img2img",
            param="hr_upscaler",
        )
    return found.value


def _num_steps(body: Txt2ImgRequest, info: ImageModelInfo) -> int | None:
    """Number of steps of the whole schedule; A1111's number counts only the steps that are run."""
    strength = body.strength
    default = info.denoising.default_steps if info.denoising else 1
    wanted = body.hr_second_pass_steps or body.steps or default
    if not 0 < strength <= 1 or wanted < 1:
        return None  # refused by name, whatever the number
    num_steps = math.ceil(wanted / strength)
    num_steps += num_steps_at(num_steps, strength) < wanted  # the product is just below an integer
    if num_steps > MAX_STEPS:
        raise InvalidParameter(
            f"{wanted} steps with denoising_strength {strength:g} need a schedule of {num_steps} "
            f"steps; the limit is {MAX_STEPS}; raise denoising_strength, or lower "
            "hr_second_pass_steps",
            param="hr_second_pass_steps",
        )
    return num_steps


def _scheduler(body: Txt2ImgRequest, info: ImageModelInfo) -> str | None:
    sampler, schedule_type = body.hr_sampler_name or "", body.hr_scheduler or ""
    own = (
        None if sampler in _SAME_SAMPLER else sampler,
        None if schedule_type in _SAME_SCHEDULER else schedule_type,
    )
    if own == (None, None):
        return None
    first = (body.sampler_name or body.sampler_index, body.scheduler)
    return find_scheduler(own[0] or first[0], own[1] or first[1], info, param="hr_sampler_name")


def _size(body: Txt2ImgRequest, info: ImageModelInfo) -> dict[str, Any]:
    """The result's size, rounded down to the model's grid, as A1111 rounds down to whole
    latents."""
    x, y = body.hr_resize_x or 0, body.hr_resize_y or 0
    if not x and not y:
        return {"scale": body.hr_scale}
    width, height = body.width or info.default_width, body.height or info.default_height
    sides = (x or y * width // height, y or x * height // width)
    across, down = (side // info.size_multiple * info.size_multiple for side in sides)
    return {"size": f"{across}x{down}"}
