"""Converts A1111's bodies to those of our image routes. All functions are pure."""

from collections.abc import Mapping
from typing import Any

from engine.contract.draw import ImageModelInfo
from engine.errors import InvalidParameter, UnsupportedFeature
from server.dialects.a1111.hires import hires_body
from server.dialects.a1111.protocol import (
    DrawingFields,
    ExtraSingleImageRequest,
    Img2ImgRequest,
    Txt2ImgRequest,
)
from server.dialects.a1111.samplers import find_scheduler, shown
from server.dialects.a1111.titles import read_title
from server.dialects.dialect import openai_body
from server.protocol.common import integral
from server.protocol.images import MAX_IMAGES, ImageEditRequest, ImageGenerationRequest
from server.protocol.upscaling import UpscaleImageRequest

OWN_NAMES: Mapping[str, str] = {
    "num_inference_steps": "steps",
    "strength": "denoising_strength",
    "feather": "mask_blur",
    "image_guidance_scale": "image_cfg_scale",
    "guidance_scale": "cfg_scale",
    "hires.prompt": "hr_prompt",
    "hires.negative_prompt": "hr_negative_prompt",
    "hires.guidance_scale": "hr_cfg",
    "hires.strength": "denoising_strength",
    "hires.num_inference_steps": "hr_second_pass_steps",
    "hires.scale": "hr_scale",
    "hires.size": "hr_resize_x",
    "hires.scheduler": "hr_sampler_name",
    "crop_to_mask": "inpaint_full_res",
    "crop_padding": "inpaint_full_res_padding",
    "invert_mask": "inpainting_mask_invert",
    "mask_content": "inpainting_fill",
}
"""Our field names → A1111's, for messages."""

_DEFAULT_RESIZE = 2.0
_MASK_CONTENTS = {0: "fill", 1: "original"}
_ETAS = {"ddim": 0, "euler_ancestral": 1, "dpmpp_2m_sde": 1, "dpmpp_2m_sde_karras": 1}
"""The share of fresh noise that samplers use here. A1111 lets a request set it for these
samplers."""
_SENT_ANYWAY = (0, 1)
"""Values of eta that clients send for any sampler."""
_CHECKPOINT, _CLIP_LAYERS = "sd_model_checkpoint", "CLIP_stop_at_last_layers"


def model_of(body: DrawingFields) -> str | None:
    """The id of the requested model.

    Raises:
        InvalidParameter, UnsupportedFeature: a setting cannot be set for a single request.
    """
    title = _title(body)
    return read_title(title)[0] if title else None


def _title(body: DrawingFields) -> str | None:
    """The requested title of a model.

    Raises:
        InvalidParameter, UnsupportedFeature: a setting cannot be set for a single request.
    """
    settings = body.override_settings or {}
    if settings.keys() - {_CHECKPOINT, _CLIP_LAYERS}:
        raise UnsupportedFeature(
            f"override_settings can contain only {_CHECKPOINT} and {_CLIP_LAYERS} here; leave out "
            "others",
            param="override_settings",
        )
    model = settings.get(_CHECKPOINT)
    if model is not None and not isinstance(model, str):
        raise InvalidParameter(f"{_CHECKPOINT} must be a string", param="override_settings")
    return model or None


def strength_of(body: DrawingFields) -> float | None:
    """The share of the steps that is run on an input image, or in the second pass; None if there is
    neither, whatever the body says."""
    if isinstance(body, Txt2ImgRequest) and not body.enable_hr:
        return None
    return body.strength


def drawing_body(body: Txt2ImgRequest, info: ImageModelInfo) -> ImageGenerationRequest:
    """The body of `/v1/images/generations`.

    Raises:
        RequestValidationError, EngineError: the request is refused.
    """
    fields = _fields(body, info) | {"n": _num_images(body)}
    if body.enable_hr:
        fields["hires"] = hires_body(body, info)
    return openai_body(ImageGenerationRequest, fields)


def redrawing_body(body: Img2ImgRequest, info: ImageModelInfo) -> ImageEditRequest:
    """The body of `/v1/images/edits`.

    Raises:
        RequestValidationError, EngineError: the request is refused.
    """
    fields = _fields(body, info) | {
        "n": _num_images(body),
        "images": body.init_images,
        "strength": strength_of(body),
        "image_guidance_scale": body.image_cfg_scale,
    }
    if body.mask:
        fields |= {
            "mask": body.mask,
            "mask_mode": "luminance",
            "feather": body.mask_blur,
            "crop_to_mask": body.inpaint_full_res in (None, True),
            "crop_padding": body.inpaint_full_res_padding,
            "invert_mask": bool(body.inpainting_mask_invert) or None,
            "mask_content": _mask_content(body.inpainting_fill),
        }
    return openai_body(ImageEditRequest, fields)


def upscaling_body(body: ExtraSingleImageRequest) -> UpscaleImageRequest:
    """The body of `/v1/images/upscale`.

    Raises:
        RequestValidationError, EngineError: the request is refused.
    """
    if body.upscaler_1 == "None":
        raise UnsupportedFeature(
            "upscaler_1 None only scales the picture, which this server does not do; name one of "
            "/sdapi/v1/upscalers, or leave upscaler_1 out",
            param="upscaler_1",
        )
    scale = _DEFAULT_RESIZE if body.upscaling_resize is None else body.upscaling_resize
    fields = {"image": body.image, "model": body.upscaler_1, "scale": scale}
    return openai_body(UpscaleImageRequest, fields)


def eta_warnings(eta: float | None, scheduler: str) -> list[str]:
    """A warning about an eta that would have an effect in A1111 and has none here."""
    own = _ETAS.get(scheduler)
    if eta is None or own is None or eta == own:
        return []
    return [f"eta has no effect: {shown(scheduler)} always uses {own} here"]


def idle_warnings(body: DrawingFields) -> list[str]:
    """Warnings about fields that ask for something besides the picture."""
    if not (body.model_extra or {}).get("save_images"):
        return []
    return ["save_images has no effect: nothing is written to disk; images are in the answer"]


def _mask_content(fill: int | None) -> str | None:
    """Our name of what is under the mask.

    Raises:
        UnsupportedFeature: noise is requested under the mask.
    """
    if fill is None:
        return None
    if fill not in _MASK_CONTENTS:
        raise UnsupportedFeature(
            f"inpainting_fill {fill} is not supported here; use 0 or 1, or denoising_strength 1, "
            "which keeps nothing under the mask",
            param="inpainting_fill",
        )
    return _MASK_CONTENTS[fill]


def _check_eta(body: DrawingFields, scheduler: str | None, info: ImageModelInfo) -> None:
    """Refuse a share of fresh noise that differs from the sampler's.

    Raises:
        UnsupportedFeature: the shares differ.
    """
    name = scheduler or (info.denoising.default_scheduler if info.denoising else "")
    if body.eta not in _SENT_ANYWAY and eta_warnings(body.eta, name):
        raise UnsupportedFeature(
            f"eta of {shown(name)} is always {_ETAS[name]} here; leave eta out", param="eta"
        )


def _fields(body: DrawingFields, info: ImageModelInfo) -> dict[str, Any]:
    scheduler = _scheduler(body, info)
    _check_eta(body, scheduler, info)
    _, digest = read_title(_title(body) or "")
    return {
        "model": info.model,
        "prompt": body.prompt or "",
        "negative_prompt": body.negative_prompt,
        "prompt_syntax": "a1111",
        "num_inference_steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "seed": None if body.seed == -1 else body.seed,
        "scheduler": scheduler,
        "size": _size(body, info),
        "clip_skip": _clip_skip(body),
        "made_with": {"model": digest} if digest else None,
    }


def _num_images(body: DrawingFields) -> int:
    """Number of images. Several input images are a batch: each is redrawn once per iteration."""
    num_inputs = len(body.init_images) if isinstance(body, Img2ImgRequest) else 1
    batch_size, n_iter = body.batch_size or 1, body.n_iter or 1
    if num_inputs > 1:
        if batch_size not in (1, num_inputs):
            raise InvalidParameter(
                f"batch_size is {batch_size} with {num_inputs} init_images, which are the batch; "
                "leave batch_size out",
                param="batch_size",
            )
        batch_size = 1
    if batch_size * n_iter > MAX_IMAGES:
        raise InvalidParameter(
            f"batch_size times n_iter is {batch_size * n_iter}; the limit is {MAX_IMAGES}; lower "
            "one of them",
            param="batch_size",
        )
    return batch_size * n_iter


def _scheduler(body: DrawingFields, info: ImageModelInfo) -> str | None:
    sampler = body.sampler_name or body.sampler_index
    return find_scheduler(sampler, body.scheduler, info, param="sampler_name")


def _size(body: DrawingFields, info: ImageModelInfo) -> str | None:
    if body.width is None and body.height is None:
        return None
    return f"{body.width or info.default_width}x{body.height or info.default_height}"


def _clip_skip(body: DrawingFields) -> int | None:
    """Our `clip_skip`. A1111 counts from 1, which leaves nothing out."""
    layers = integral((body.override_settings or {}).get(_CLIP_LAYERS))
    if layers is None:
        return None
    if not isinstance(layers, int) or not 1 <= layers <= 12:
        raise InvalidParameter(
            f"{_CLIP_LAYERS} must be an integer from 1 to 12", param="override_settings"
        )
    return layers - 1
