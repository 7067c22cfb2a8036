"""From A1111's bodies to those of our image routes. Pure functions."""

from collections.abc import Mapping
from typing import Any

from engine.errors import InvalidParameter, UnsupportedFeature
from engine.image_types import ImageModelInfo
from server.dialects.a1111.protocol import DrawingFields, Img2ImgRequest, Txt2ImgRequest
from server.dialects.dialect import openai_body
from server.images.sampler_names import names_of, scheduler_of
from server.protocol.common import integral
from server.protocol.images import MAX_IMAGES, ImageEditRequest, ImageGenerationRequest

OWN_NAMES: Mapping[str, str] = {
    "num_inference_steps": "steps",
    "image_guidance_scale": "image_cfg_scale",
    "guidance_scale": "cfg_scale",
    "crop_to_mask": "inpaint_full_res",
    "crop_padding": "inpaint_full_res_padding",
}
"""Our names of fields → A1111's, for what is said of them."""

_DEFAULT_STRENGTH = 0.75
_CHECKPOINT, _CLIP_LAYERS = "sd_model_checkpoint", "CLIP_stop_at_last_layers"


def model_of(body: DrawingFields) -> str | None:
    """The id of the model that is asked for.

    Raises:
        InvalidParameter, UnsupportedFeature: a setting that cannot be one request's own.
    """
    settings = body.override_settings or {}
    if settings.keys() - {_CHECKPOINT, _CLIP_LAYERS}:
        raise UnsupportedFeature(
            f"override_settings takes {_CHECKPOINT} and {_CLIP_LAYERS} here; leave others out",
            param="override_settings",
        )
    model = settings.get(_CHECKPOINT)
    if model is not None and not isinstance(model, str):
        raise InvalidParameter(f"{_CHECKPOINT} must be a string", param="override_settings")
    return model or None


def drawing_body(body: Txt2ImgRequest, info: ImageModelInfo) -> ImageGenerationRequest:
    """The body of `/v1/images/generations`.

    Raises:
        RequestValidationError, EngineError: what is refused.
    """
    fields = _fields(body, info) | {"n": _num_images(body)}
    return openai_body(ImageGenerationRequest, fields)


def redrawing_body(body: Img2ImgRequest, info: ImageModelInfo) -> ImageEditRequest:
    """The body of `/v1/images/edits`.

    Raises:
        RequestValidationError, EngineError: what is refused.
    """
    strength = body.denoising_strength
    fields = _fields(body, info) | {
        "n": _num_images(body),
        "images": body.init_images,
        "strength": _DEFAULT_STRENGTH if strength is None else strength,
        "image_guidance_scale": body.image_cfg_scale,
    }
    if body.mask:
        fields |= {
            "mask": body.mask,
            "mask_mode": "luminance",
            "feather": body.mask_blur,
            "crop_to_mask": body.inpaint_full_res in (None, True),
            "crop_padding": body.inpaint_full_res_padding,
        }
    return openai_body(ImageEditRequest, fields)


def _fields(body: DrawingFields, info: ImageModelInfo) -> dict[str, Any]:
    return {
        "model": info.model,
        "prompt": body.prompt or "",
        "negative_prompt": body.negative_prompt,
        "prompt_syntax": "a1111",
        "num_inference_steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "seed": None if body.seed == -1 else body.seed,
        "scheduler": _scheduler(body, info),
        "size": _size(body, info),
        "clip_skip": _clip_skip(body),
    }


def _num_images(body: DrawingFields) -> int:
    """Several input images are a batch: each is redrawn once per iteration."""
    num_inputs = len(body.init_images) if isinstance(body, Img2ImgRequest) else 1
    batch_size, n_iter = body.batch_size or 1, body.n_iter or 1
    if num_inputs > 1:
        if batch_size not in (1, num_inputs):
            raise InvalidParameter(
                f"batch_size is {batch_size} with {num_inputs} init_images; leave it out",
                param="batch_size",
            )
        batch_size = 1
    if batch_size * n_iter > MAX_IMAGES:
        raise InvalidParameter(
            f"batch_size times n_iter is {batch_size * n_iter}; the limit is {MAX_IMAGES}",
            param="batch_size",
        )
    return batch_size * n_iter


def _scheduler(body: DrawingFields, info: ImageModelInfo) -> str | None:
    sampler = body.sampler_name or body.sampler_index
    schedule_type = body.scheduler or ""
    offered = info.denoising.schedulers if info.denoising else ()
    if not sampler:
        if schedule_type.lower() in ("", "automatic"):
            return None
        sampler = names_of(offered[0])[0] if offered else ""
    found = scheduler_of(sampler, schedule_type, offered)
    if found is None:
        names = ", ".join(" ".join(names_of(name)).strip() for name in offered)
        raise InvalidParameter(
            f"that sampler and schedule type are not offered for {info.model}; use one of {names}",
            param="sampler_name",
        )
    return found


def _size(body: DrawingFields, info: ImageModelInfo) -> str | None:
    if body.width is None and body.height is None:
        return None
    return f"{body.width or info.default_width}x{body.height or info.default_height}"


def _clip_skip(body: DrawingFields) -> int | None:
    """A1111 counts from 1, which leaves nothing out."""
    layers = integral((body.override_settings or {}).get(_CLIP_LAYERS))
    if layers is None:
        return None
    if not isinstance(layers, int) or not 1 <= layers <= 12:
        raise InvalidParameter(
            f"{_CLIP_LAYERS} must be an integer from 1 to 12", param="override_settings"
        )
    return layers - 1
