"""Bodies of A1111's routes. Values that become fields of our image routes are checked there."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from server.protocol.common import RequestBody
from server.protocol.image_inputs import ImageReference
from server.protocol.images import MAX_INPUT_IMAGES
from server.protocol.whole_numbers import NOT_A_FLAG

_STRENGTH = 0.75
_NO_EFFECT: Mapping[str, str] = {
    **dict.fromkeys(
        ("save_images", "do_not_save_samples", "do_not_save_grid", "include_init_images"),
        "nothing is written to disk, and inputs are not sent back",
    ),
    **dict.fromkeys(
        ("subseed", "seed_resize_from_h", "seed_resize_from_w"), "with subseed_strength"
    ),
    **dict.fromkeys(("s_tmin", "s_tmax", "s_noise"), "with s_churn"),
    **dict.fromkeys(
        (
            *("hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x", "hr_resize_y"),
            *("hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt"),
            *("hr_negative_prompt", "hr_cfg", "firstphase_width", "firstphase_height"),
        ),
        "with enable_hr",
    ),
    "refiner_switch_at": "with refiner_checkpoint",
    "comments": "goes into A1111's own files",
    "force_task_id": "names a task to A1111's own page",
    "mask_round": "grey levels of a mask are rounded",
}
"""Fields that change no picture of this server → why. If another field is named, that one is
refused."""

_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "styles": ([],),
    "disable_extra_networks": (False,),
    "subseed_strength": (0,),
    "restore_faces": (False,),
    "tiling": (False,),
    "s_churn": (0,),
    "s_min_uncond": (0,),
    "refiner_checkpoint": ("", "None"),
    "script_name": ("", "None"),
    "script_args": ([],),
    "alwayson_scripts": ({},),
    "infotext": ("",),
    "override_settings_restore_afterwards": (True,),
}
"""Known fields that are refused, with the values that ask for nothing and pass. Null passes too."""

_INSTEAD = {
    "enable_hr": (
        "enable_hr is only for txt2img; img2img enlarges with width and height, and "
        "redraws with denoising_strength"
    ),
    "styles": "styles are not supported here; write their words into prompt and negative_prompt",
    "tiling": (
        "tiling is not supported here: no model draws pictures whose borders match; leave it out"
    ),
    "refiner_checkpoint": "refiner_checkpoint is not supported here; send the image to img2img "
    "with that checkpoint and a small denoising_strength",
    "resize_mode": (
        "resize_mode is not supported here: images are scaled to width and height; "
        "crop or pad the image first, or leave both out"
    ),
}
"""Advice about refused fields that have an alternative."""

_UNSUPPORTED_WITH_IMAGE: Mapping[str, tuple[Any, ...]] = {
    **_UNSUPPORTED,
    "enable_hr": (False,),
    "resize_mode": (0,),
    "mask_blur_x": (4,),
    "mask_blur_y": (4,),
    "initial_noise_multiplier": (1,),
    "latent_mask": ("",),
}


class DrawingFields(RequestBody):
    """The common fields of `/txt2img` and `/img2img`. A field that is left out or null means the
    model's default."""

    _no_effect: ClassVar[Mapping[str, str]] = _NO_EFFECT
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _UNSUPPORTED
    _instead: ClassVar[Mapping[str, str]] = _INSTEAD

    prompt: str | None = Field(None, description="What to draw, with A1111's weights.")
    negative_prompt: str | None = None
    seed: int | None = Field(None, ge=-1, description="-1 means a random one.")
    batch_size: int | None = Field(None, ge=1, description="Images, times n_iter. Default 1.")
    n_iter: int | None = Field(None, ge=1, description="Default 1.")
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = Field(None, ge=1, le=1 << 16)
    height: int | None = Field(None, ge=1, le=1 << 16)
    sampler_name: str | None = Field(None, max_length=64, description="See `samplers`.")
    sampler_index: str | None = Field(
        None, max_length=64, description="Older clients' name for sampler_name."
    )
    scheduler: str | None = Field(
        None, max_length=64, description="Schedule type: Automatic, Uniform, Karras, Exponential."
    )
    eta: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of fresh noise in samplers that add some: always 1 here, or 0 in "
        "DDIM. 0 and 1 are accepted for all samplers, because clients send them, and "
        "have no effect.",
    )
    denoising_strength: float | None = Field(
        None,
        description="Share of the steps that is run on an input image, or in the second pass of "
        "enable_hr. Default 0.75.",
    )
    override_settings: dict[str, Any] | None = Field(
        None,
        max_length=64,
        description="`sd_model_checkpoint`: id or title of a served model; if the hash in a "
        "title does not match its files, a warning says so. "
        "`CLIP_stop_at_last_layers`.",
    )
    send_images: bool | None = Field(None, description="Default true.")

    @property
    def strength(self) -> float:
        """Share of the steps that is run on an image, if there is one."""
        return _STRENGTH if self.denoising_strength is None else self.denoising_strength


class Txt2ImgRequest(DrawingFields):
    """Draw from a prompt."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "a red circle"}})

    enable_hr: bool | None = Field(
        None, description="Enlarge the drawn image and partly redraw it. Default false."
    )
    hr_scale: float | None = Field(None, description="Default 2.")
    hr_resize_x: int | None = Field(
        None, ge=0, le=1 << 16, description="Width, in place of hr_scale; 0 means none."
    )
    hr_resize_y: int | None = Field(None, ge=0, le=1 << 16)
    hr_upscaler: str | None = Field(
        None, max_length=256, description="See `latent-upscale-modes`; or Lanczos, Nearest, None."
    )
    hr_second_pass_steps: int | None = Field(
        None,
        ge=0,
        description="Steps to run in the second pass. 0, the default, means as many as in steps.",
    )
    hr_sampler_name: str | None = Field(None, max_length=64)
    hr_scheduler: str | None = Field(None, max_length=64)
    hr_prompt: str | None = None
    hr_negative_prompt: str | None = None
    hr_cfg: float | None = None
    hr_checkpoint_name: str | None = Field(None, max_length=256)
    firstphase_width: int | None = None
    firstphase_height: int | None = None


class Img2ImgRequest(DrawingFields):
    """Redraw an image, or a part of it."""

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = _UNSUPPORTED_WITH_IMAGE

    init_images: list[str] = Field(
        min_length=1, max_length=MAX_INPUT_IMAGES, description="Base64, or data URLs."
    )
    mask: str | None = Field(None, description="White is redrawn.")
    mask_blur: int | None = Field(
        None, description="Pixels over which the edge is blended, all of them inside the mask."
    )
    inpaint_full_res: bool | Literal[0, 1] | None = Field(
        None, description="Work only on the mask's surroundings. Default true."
    )
    inpaint_full_res_padding: int | None = Field(None, description="Default 32.")
    inpainting_fill: Annotated[Literal[0, 1, 2, 3], NOT_A_FLAG] | None = Field(
        None, description="Under a mask: 0 the colours around it, 1 the image. Default 1."
    )
    inpainting_mask_invert: bool | Literal[0, 1] | None = Field(
        None, description="Black is redrawn instead. Default false."
    )
    image_cfg_scale: float | None = None


class ExtraSingleImageRequest(RequestBody):
    """Enlarge an image."""

    _no_effect: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("upscaling_resize_w", "upscaling_resize_h", "upscaling_crop"), "with resize_mode 1"
        ),
        "codeformer_weight": "with codeformer_visibility",
        "extras_upscaler_2_visibility": "with upscaler_2",
        "show_extras_results": "shows the result on A1111's own page",
        "upscale_first": "orders the other steps of A1111's enlarging",
    }
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "resize_mode": (0,),
        "gfpgan_visibility": (0,),
        "codeformer_visibility": (0,),
        "upscaler_2": ("", "None"),
    }

    image: str = Field(description="Base64, or a data URL.")
    upscaling_resize: float | None = Field(
        None, description="How many times as large each side becomes. Default 2."
    )
    upscaler_1: str | None = Field(
        None, max_length=256, description="See `upscalers`. Default: the server's own."
    )


class PngInfoRequest(RequestBody):
    """An image to read."""

    _no_effect: ClassVar[Mapping[str, str]] = {}
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    image: ImageReference = Field(description="Base64, or a data URL: PNG, JPEG or WebP.")


class OptionsRequest(RequestBody):
    """Settings to change. Only their current values are accepted."""

    _no_effect: ClassVar[Mapping[str, str]] = {}
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
