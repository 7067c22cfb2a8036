"""Converts an image request's body to the engine's order: defaults and limits.

All functions are pure. `server/protocol/images.py` has the checks that pydantic can make alone;
this module has those that depend on the served model and on the input images.
"""

import math
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from engine.contract.draw import (
    PARAMS,
    DenoisingFacts,
    DrawParams,
    EditParams,
    GuidanceKind,
    ImageModelInfo,
    ImageParams,
    ImageRequest,
    ImageTask,
    InpaintParams,
    MaskContent,
    PromptSyntax,
    combines_images,
)
from engine.errors import InvalidParameter, UnsupportedFeature
from server.images.files import check_sides
from server.images.hires import check_same_adapters, hires_pass
from server.images.inputs import ImageInputs
from server.images.limits import (
    Size,
    check_budget,
    check_steps,
    drawing_size,
    edited_size,
    offered_scheduler,
    painted_size,
    parse_size,
    worked_pixels,
)
from server.images.loras import lora_settings, take_tags
from server.images.made_with import changed_since, made_with
from server.images.task import outpaint_of
from server.protocol.common import INT64_MAX, given_or
from server.protocol.images import (
    ImageEditRequest,
    ImageFields,
    ImageGenerationRequest,
    ImageVariationRequest,
)
from server.settings import Settings

VARIATION_STRENGTH = 0.7
DEFAULT_STRENGTH, FAITHFUL_STRENGTH = 0.8, 0.5
DEFAULT_IMAGE_GUIDANCE, FAITHFUL_IMAGE_GUIDANCE = 1.5, 2.0
"""Defaults without and with `input_fidelity` high."""

_QUALITY_STEPS: Mapping[str, float] = {
    "auto": 1.0,
    "low": 0.5,
    "standard": 1.0,
    "medium": 1.0,
    "hd": 1.5,
    "high": 1.5,
    "xhigh": 2.0,
    "max": 3.0,
}
_QUALITY_NAMES = {"auto": "medium", "standard": "medium", "hd": "high"}
_TAKES_NO_PROMPT = (ImageTask.IMAGE_TO_IMAGE, ImageTask.INPAINT)


@dataclass(frozen=True, slots=True)
class ImageOrder:
    """A request for the engine, and the other facts for its answer."""

    request: ImageRequest
    quality: str
    scheduler: str
    warnings: tuple[str, ...]
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """Digests of the files that draw the image (`server.images.made_with`)."""


def image_order(
    body: ImageFields,
    task: ImageTask,
    inputs: ImageInputs,
    info: ImageModelInfo,
    settings: Settings,
    *,
    request_id: str,
    priority: int = 0,
) -> ImageOrder:
    """Join the body's fields with the model's defaults and limits.

    Args:
        task: from `choose_task`, which is called before anything is decoded.

    Raises:
        InvalidParameter: a value does not fit the model, the inputs or the limits.
        UnsupportedFeature: the model cannot do the task.
    """
    denoising = info.denoising
    if denoising is None:
        raise UnsupportedFeature(
            f"{info.model} does not support {task.value}; name a model that does", param="model"
        )
    params = _params(body, task, inputs, info, denoising, settings)
    prompt = _prompt_text(body)
    tags: dict[str, float] = {}
    if params.prompt_syntax is PromptSyntax.A1111:
        prompt, tags = take_tags(prompt)
    _check_prompt(prompt, params.task)
    if isinstance(params, DrawParams) and isinstance(body, ImageGenerationRequest):
        params = _with_second_pass(body, params, prompt, tags, info, denoising)
    check_sides(given_or(body.output_format, "png"), *params.result_size)
    passes = [(_worked_pixels(each, inputs, info), each.num_steps) for each in params.passes]
    check_budget(passes, params.n, settings.max_image_megapixel_steps)
    guidance = acting_guidance(
        body.guidance_scale, params.guidance_scale, prompt, params.negative_prompt, denoising
    )
    request = ImageRequest(
        request_id=request_id,
        model=info.model,
        prompt=prompt,
        params=replace(params, guidance_scale=guidance),
        images=list(inputs.images),
        mask=inputs.mask,
        loras=lora_settings(body, tags, info),
        priority=priority,
        arrival_time_s=time.time(),
    )
    quality = given_or(body.quality, "auto")
    return ImageOrder(
        request=request,
        quality=_QUALITY_NAMES.get(quality, quality),
        scheduler=given_or(params.scheduler, denoising.default_scheduler),
        warnings=tuple(_warnings(body, request, info, denoising)),
        made_with=made_with(info, request.adapter_names),
    )


def _params(
    body: ImageFields,
    task: ImageTask,
    inputs: ImageInputs,
    info: ImageModelInfo,
    denoising: DenoisingFacts,
    settings: Settings,
) -> ImageParams:
    # Each input image is edited n times, and with each setting of adapters.
    num_shares = 1 if combines_images(task, info.references) else max(1, len(inputs.images))
    per_setting = given_or(body.n, 1) * num_shares
    n = per_setting * body.num_settings
    width, height = _size(body, task, inputs, info, settings)
    params = PARAMS[task](
        width=width,
        height=height,
        num_inference_steps=_num_steps(body, denoising),
        seed=first_seed(body.seed, per_setting),
        n=n,
        negative_prompt=given_or(body.negative_prompt, ""),
        guidance_scale=given_or(body.guidance_scale, _default_guidance(task, denoising)),
        guidance_rescale=given_or(body.guidance_rescale, 0.0),
        guidance_start=given_or(body.guidance_start, 0.0),
        guidance_end=given_or(body.guidance_end, 1.0),
        scheduler=offered_scheduler(body.scheduler, info.model, denoising.schedulers),
        clip_skip=given_or(body.clip_skip, 0),
        prompt_syntax=PromptSyntax(given_or(body.prompt_syntax, "plain")),
        num_previews=given_or(body.partial_images, 0),
        **_fields_of_task(body, task),
    )
    check_steps(params.num_inference_steps, params.share)
    return params


def _fields_of_task(body: ImageFields, task: ImageTask) -> dict[str, Any]:
    """The fields that only the parameters of this task have: those that the body gives under the
    same name, and those that are converted here."""
    own = {each.name for each in fields(PARAMS[task])} - {each.name for each in fields(ImageParams)}
    given = {name: value for name in own if (value := getattr(body, name, None)) is not None}
    converted: dict[str, Any] = {"strength": _strength(body, task), "hires": None}
    if isinstance(body, ImageEditRequest):
        converted |= {
            "image_guidance_scale": _image_guidance(body),
            "mask_content": MaskContent(given_or(body.mask_content, "original")),
            "outpaint": outpaint_of(body.outpaint),
        }
    return given | {name: value for name, value in converted.items() if name in own}


def _with_second_pass(
    body: ImageGenerationRequest,
    params: DrawParams,
    prompt: str,
    tags: Mapping[str, float],
    info: ImageModelInfo,
    denoising: DenoisingFacts,
) -> DrawParams:
    if body.hires is None:
        return params
    hires = hires_pass(body.hires, params, prompt, info, denoising)
    if params.prompt_syntax is PromptSyntax.A1111:
        wanted, own_tags = take_tags(hires.prompt)
        check_same_adapters(tags, own_tags)
        hires = replace(hires, prompt=wanted or prompt)
    return replace(params, hires=hires)


def _default_guidance(task: ImageTask, denoising: DenoisingFacts) -> float:
    if task is ImageTask.EDIT and denoising.default_edit_guidance_scale is not None:
        return denoising.default_edit_guidance_scale
    return denoising.default_guidance_scale


def _size(
    body: ImageFields,
    task: ImageTask,
    inputs: ImageInputs,
    info: ImageModelInfo,
    settings: Settings,
) -> Size:
    asked = parse_size(body.size)
    if asked is None and not combines_images(task, info.references):
        _check_one_size(inputs)
    if task is ImageTask.TEXT_TO_IMAGE:
        return drawing_size(asked, info)
    if asked is None and task is ImageTask.EDIT and info.references is not None:
        first = inputs.images[0]
        return info.references.size_of(first.width, first.height)
    if not isinstance(body, ImageEditRequest) or task is not ImageTask.INPAINT:
        return edited_size(asked, inputs.images[0], info)
    outpaint = outpaint_of(body.outpaint)
    if inputs.mask is not None and inputs.mask_is_empty and outpaint is None:
        raise InvalidParameter(
            "the mask marks nothing: without soft_mask, only levels of at least one half count; "
            "mark something, or set soft_mask",
            param="mask",
        )
    return painted_size(
        asked,
        inputs.images[0],
        outpaint,
        info,
        crop=bool(body.crop_to_mask),
        max_pixels=settings.max_image_input_pixels,
    )


def _check_one_size(inputs: ImageInputs) -> None:
    """Refuse images of different sizes without a requested size: all results of a request have one
    size."""
    sizes = dict.fromkeys(f"{image.width}x{image.height}" for image in inputs.images)
    if len(sizes) > 1:
        raise InvalidParameter(
            f"the images have different sizes ({', '.join(sizes)}); give size, to which all are "
            "scaled, or send them one by one",
            param="size",
        )


def _worked_pixels(params: ImageParams, inputs: ImageInputs, info: ImageModelInfo) -> int:
    num_pixels = worked_pixels(params.width, params.height, info)
    if isinstance(params, InpaintParams) and params.crop_to_mask:
        num_pixels = info.default_width * info.default_height
    if info.references is None:
        return num_pixels
    if isinstance(params, InpaintParams) and info.references.sees_inpainted:
        return 2 * num_pixels
    if isinstance(params, EditParams):
        seen = [info.references.size_of(one.width, one.height) for one in inputs.images]
        # One by one, each result has one of them beside it.
        num_beside = len(seen) if info.references.combines else 1
        num_pixels += sum(sorted(width * height for width, height in seen)[-num_beside:])
    return num_pixels


def _num_steps(body: ImageFields, denoising: DenoisingFacts) -> int:
    if body.num_inference_steps is not None:
        return body.num_inference_steps
    share = _QUALITY_STEPS[given_or(body.quality, "auto")]
    return max(1, math.ceil(denoising.default_steps * share))


def first_seed(seed: int | None, n: int) -> int:
    """The seed of the first of n images: the requested one, or a random one that is short enough to
    type.

    Raises:
        InvalidParameter: the last image's seed would be too large.
    """
    if seed is None:
        return secrets.randbelow(1 << 32)
    if seed + n - 1 > INT64_MAX:
        raise InvalidParameter(
            f"image i uses seed + i, and seed + {n - 1} is above the limit, {INT64_MAX}; use a "
            "smaller seed",
            param="seed",
        )
    return seed


def _strength(body: ImageFields, task: ImageTask) -> float:
    if isinstance(body, ImageVariationRequest):
        return VARIATION_STRENGTH
    if isinstance(body, ImageEditRequest) and body.strength is not None:
        return body.strength
    if task is ImageTask.INPAINT:
        return 1.0
    return FAITHFUL_STRENGTH if _is_faithful(body) else DEFAULT_STRENGTH


def _image_guidance(body: ImageEditRequest) -> float:
    if body.image_guidance_scale is not None:
        return body.image_guidance_scale
    return FAITHFUL_IMAGE_GUIDANCE if _is_faithful(body) else DEFAULT_IMAGE_GUIDANCE


def _is_faithful(body: ImageFields) -> bool:
    return isinstance(body, ImageEditRequest) and body.input_fidelity == "high"


def _check_prompt(prompt: str, task: ImageTask) -> None:
    if not prompt.strip() and task not in _TAKES_NO_PROMPT:
        raise InvalidParameter("the prompt is empty; say what to draw", param="prompt")


def _prompt_text(body: ImageFields) -> str:
    if isinstance(body, ImageGenerationRequest | ImageEditRequest):
        return body.prompt
    return given_or(body.prompt, "") if isinstance(body, ImageVariationRequest) else ""


def acting_guidance(
    asked: float | None, default: float, prompt: str, negative: str, denoising: DenoisingFacts
) -> float:
    """The guidance scale: the requested one or the default. Between two empty prompts it is 1 by
    default, because guidance changes nothing there and costs a second row."""
    is_idle = not prompt and not negative
    if asked is None and is_idle and denoising.guidance is GuidanceKind.CLASSIFIER_FREE:
        return 1.0
    return given_or(asked, default)


def _warnings(
    body: ImageFields, request: ImageRequest, info: ImageModelInfo, denoising: DenoisingFacts
) -> list[str]:
    """Warnings about fields that have no effect; the engine adds others, such as for a negative
    prompt."""
    warnings = []
    if denoising.guidance is GuidanceKind.NONE and body.guidance_scale not in (None, 1):
        warnings.append(f"guidance_scale has no effect: {request.model} is not guided")
    if body.made_with is not None:
        warnings += changed_since(body.made_with, info, request.adapter_names)
    if isinstance(body, ImageEditRequest):
        warnings += _edit_warnings(body, request.params.task, info, denoising.guidance)
        num_images = len(request.images)
        if num_images > 1 and not combines_images(request.params.task, info.references):
            warnings.append(
                f"{request.model} takes one image at a time: each of the {num_images} images was "
                "edited separately, and the results are in their order"
            )
    return warnings


def _edit_warnings(
    body: ImageEditRequest, task: ImageTask, info: ImageModelInfo, guidance: GuidanceKind
) -> list[str]:
    idle = []
    # Between reference images and the prompt there is nothing to weight.
    is_weighted = task is ImageTask.EDIT and info.references is None
    is_guided = is_weighted and guidance is GuidanceKind.CLASSIFIER_FREE
    if body.input_fidelity is not None and _has_own_fidelity(body, task, is_guided=is_guided):
        idle.append("input_fidelity")
    if task is ImageTask.EDIT and body.strength is not None:
        idle.append("strength")
    if not is_weighted and body.image_guidance_scale is not None:
        idle.append("image_guidance_scale")
    if task is not ImageTask.INPAINT and body.feather is not None:
        idle.append("feather")
    if not body.crop_to_mask and body.crop_padding is not None:
        idle.append("crop_padding")
    if body.mask_content == "fill" and _strength(body, task) == 1.0 and not body.soft_mask:
        idle.append("mask_content")
    return [f"{name} has no effect on this request ({task.value})" for name in idle]


def _has_own_fidelity(body: ImageEditRequest, task: ImageTask, *, is_guided: bool) -> bool:
    """Whether another field decides how closely the image is kept.

    Args:
        is_guided: whether `image_guidance_scale` has an effect.
    """
    if task is ImageTask.EDIT:
        return body.image_guidance_scale is not None or not is_guided
    return task is ImageTask.INPAINT or body.strength is not None
