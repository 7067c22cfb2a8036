"""Bodies of `POST /v1/images/generations`, `/edits` and `/variations`.

An explicit null means the default. Checks that need the model, such as that of the size, are in
`server/images/convert.py`.
"""

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from engine.errors import InvalidParameter
from server.http.form_values import read_fields
from server.http.multipart import Form, Part
from server.protocol.chain import Then, check_stages
from server.protocol.common import INT64_MAX, Priority, given_or
from server.protocol.file_fields import MAX_STEPS, NO_EFFECT_FIELDS, FileFields, Prompt
from server.protocol.hires import HiresFields
from server.protocol.image_inputs import ImageReference, OutpaintFields, image_form_body, uploaded
from server.protocol.image_other_names import OtherNames, read_other_names
from server.protocol.loras import (
    MAX_LORAS,
    LoraField,
    check_loras,
    is_form_lora,
    num_settings,
    read_form_loras,
)
from server.protocol.made_with import MadeWith

MAX_IMAGES = 10
MAX_INPUT_IMAGES = 16

UNSUPPORTED_FIELDS: Mapping[str, tuple[Any, ...]] = {
    "svg": (),
    "markup": (),
    "frame_count": (),
    "frame_duration_ms": (),
    "prompt_rewriter": (),
    "lora": ([],),
    "controlnet": (),
    **dict.fromkeys(("sigmas", "timesteps", "latents", "prompt_embeds"), ([],)),
    **dict.fromkeys(("prompt_2", "prompt_3", "negative_prompt_2"), ("",)),
    **dict.fromkeys(("cross_attention_kwargs", "joint_attention_kwargs"), ({},)),
    **dict.fromkeys(("ip_adapter_image", "negative_prompt_embeds"), ()),
    "eta": (0,),
}
"""Known fields that are refused, with the values that ask for nothing and pass. Null passes too."""

_NEVER_EMPTY = frozenset(("model", "size", "scheduler"))
"""Texts that can only be empty if a form's field was left blank."""
_FILE_FIELD = re.compile(r"images?(\[[0-9]{0,2}\])?")
_INPUT_NAMES = ("images", "image", "image[]")

Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]
MaskMode = Literal["auto", "alpha", "luminance"]
MaskContentName = Literal["original", "fill"]


class ImageFields(OtherNames, FileFields):
    """The common fields of all image routes."""

    n: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGES,
        description="Images to make; image i uses seed + i. Default 1.",
    )
    size: str | None = Field(
        None,
        max_length=32,
        description="`WIDTHxHEIGHT` in pixels. auto is the model's size, or the input image's.",
        json_schema_extra={"pattern": "^(auto|[0-9]{1,6}[xX][0-9]{1,6})$"},
    )
    quality: Quality | None = Field(
        None,
        description="Sets the number of steps if num_inference_steps does not: auto and medium "
        "take the model's, low half of that, high 1.5 times, xhigh twice, max three "
        "times.",
    )
    background: Literal["auto", "opaque", "transparent"] | None = Field(
        None,
        description="transparent removes the drawn image's background, as /v1/images/matte does; "
        "previews keep theirs. Not with jpeg. Default opaque.",
    )
    then: Then | None = Field(
        None,
        description="What to do with each image once it is drawn, in this order: objects with an "
        "`operation`, which is enlarge or matte, and with fields of /v1/images/upscale or "
        "/v1/images/matte. The file fields of the last one say how to write the result. In a "
        "form: JSON.",
    )
    stream: bool | None = Field(None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="Previews per image. Only with stream."
    )
    negative_prompt: Prompt | None = Field(
        None, description="What to steer away from. Has an effect only with guidance_scale above 1."
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=MAX_STEPS, description="Denoising steps. Default: the model's."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=100, description="1 is off. Default: the model's."
    )
    guidance_rescale: float | None = Field(
        None, ge=0, le=1, description="Reduces overexposure at high scales; 0 is off."
    )
    guidance_start: float | None = Field(
        None, ge=0, le=1, description="Guidance begins after this share of the steps. Default 0."
    )
    guidance_end: float | None = Field(
        None, ge=0, le=1, description="Guidance ends after this share of the steps. Default 1."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=INT64_MAX,
        description="The same seed gives the same image, whatever else the server does. Default: "
        "a random one, which the answer contains.",
    )
    scheduler: str | None = Field(
        None, max_length=64, description="Noise schedule; `/v1/models` lists the model's."
    )
    prompt_syntax: Literal["plain", "a1111", "comfy", "compel"] | None = Field(
        None, description="How weights are written in the prompt. Default plain: not at all."
    )
    clip_skip: int | None = Field(
        None, ge=0, le=11, description="Number of the CLIP text encoder's last layers to leave out."
    )
    loras: list[LoraField] | None = Field(
        None,
        max_length=MAX_LORAS,
        description="LoRA adapters of the model to draw with. In a form: JSON.",
    )
    made_with: MadeWith | None = Field(
        None,
        description="Digests of the files that these settings were used with, from an image's "
        "metadata. If the model or an adapter has other files now, a warning says so.",
    )
    priority: Priority = None

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = UNSUPPORTED_FIELDS
    _accepts_inputs: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _read_inputs(cls, data: Any) -> Any:
        if isinstance(data, Form):
            data = cls._read_form(data)
        if not isinstance(data, dict):
            return data
        data = read_other_names(data)
        if not cls._accepts_inputs:
            _check_no_inputs(data)
        return _collect_inputs(data)

    @classmethod
    def _read_form(cls, form: Form) -> dict[str, Any]:
        names = [name for name in form if _FILE_FIELD.fullmatch(name)]
        adapters = [name for name in form if is_form_lora(name)]
        values = read_fields(form, cls, skip=[*names, *adapters, "mask"])
        if (loras := read_form_loras(form)) is not None:
            values["loras"] = loras
        for name in _NEVER_EMPTY & values.keys():
            values[name] = values[name] or None
        files = [part for name in names for part in form[name] if _is_given(part)]
        if not files:
            raise InvalidParameter(
                "image is required; send it as a file of the form", param="image"
            )
        values["images"] = [uploaded(part) for part in files]
        masks = form.get("mask", [])
        if len(masks) > 1:
            raise InvalidParameter("mask is given more than once; send it once", param="mask")
        if masks and _is_given(masks[0]):
            values["mask"] = uploaded(masks[0])
        return values

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.partial_images and not self.stream:
            raise InvalidParameter("partial_images needs stream: true", param="partial_images")
        check_stages(self, self.then or [], is_streamed=bool(self.stream))
        if self.then and self.background == "transparent":
            raise InvalidParameter(
                "background transparent cannot be combined with then; put "
                '{"operation": "matte"} into then instead',
                param="background",
            )
        if self.background == "transparent" and self.output_format == "jpeg":
            raise InvalidParameter(
                "jpeg cannot be transparent; with background transparent, use output_format png "
                "or webp",
                param="output_format",
            )
        if given_or(self.guidance_start, 0.0) > given_or(self.guidance_end, 1.0):
            raise InvalidParameter(
                f"guidance_start is {self.guidance_start}; it must be at most guidance_end, here "
                f"{given_or(self.guidance_end, 1.0)}",
                param="guidance_start",
            )
        check_loras(self.loras or [], self.n or 1, MAX_IMAGES)
        return self

    @property
    def num_settings(self) -> int:
        """Number of settings of adapters: each makes `n` images."""
        return num_settings(self.loras)


class ImageGenerationRequest(ImageFields):
    """Draw from a prompt."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"prompt": "a large red circle left of a small blue star"}}
    )

    prompt: Prompt = Field(description="What to draw.")
    hires: HiresFields | None = Field(
        None,
        description="A second pass, which enlarges the drawn image and partly redraws it. "
        "Default none.",
    )


class ImageInputFields(ImageFields):
    """The common fields of the routes with input images."""

    _accepts_inputs: ClassVar[bool] = True
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {**UNSUPPORTED_FIELDS, "hires": ()}
    _instead: ClassVar[Mapping[str, str]] = {
        "hires": (
            "hires is for images that are drawn from a prompt alone; to enlarge an input "
            "image, send size, and to redraw part of it, strength"
        )
    }

    images: list[ImageReference] = Field(
        min_length=1,
        max_length=MAX_INPUT_IMAGES,
        description="Input images. In a form they are files named `image` or `image[]`; JSON "
        "bodies may use these names, too. Several images are for edits only. A model "
        "that follows instructions may combine them; otherwise each is edited separately.",
    )


class ImageEditRequest(ImageInputFields):
    """Change an image: follow an instruction, redraw under a mask, extend, or redraw in part."""

    prompt: Prompt = Field(description="What to draw, or the instruction.")
    mask: ImageReference | None = Field(
        None,
        description="Where to edit: an image of the first image's size. In a form it is a file.",
    )
    task: Literal["image_to_image", "inpaint", "edit"] | None = Field(
        None,
        description="Default: inpaint with a mask or outpaint; image_to_image with strength, or "
        "if the model does not follow instructions; otherwise edit.",
    )
    strength: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Share of the steps that is run on the image; 1 keeps nothing of it. Default "
        "0.8; 1 for inpaint.",
    )
    image_guidance_scale: float | None = Field(
        None, ge=0, le=100, description="How closely edit keeps to the image. Default 1.5."
    )
    input_fidelity: Literal["low", "high"] | None = Field(
        None,
        description="high keeps closer to the image, unless another field decides that: it sets "
        "image_guidance_scale 2, or strength 0.5. Default low.",
    )
    mask_mode: MaskMode | None = Field(
        None,
        description="alpha: edit where the mask is transparent, as OpenAI does. luminance: edit "
        "where it is white. Default auto: alpha if the file has any transparency, "
        "else luminance.",
    )
    invert_mask: bool | None = Field(
        None, description="Edit where the mask does not mark. Default false."
    )
    mask_content: MaskContentName | None = Field(
        None,
        description="What is under the mask before it is redrawn with a strength below 1: the "
        "original, or with fill the colours around it. Default original.",
    )
    feather: int | None = Field(
        None, ge=0, le=256, description="Pixels over which the mask's edge is blended. Default 4."
    )
    soft_mask: bool | None = Field(
        None, description="The mask's grey levels set how much may change. Default false."
    )
    crop_to_mask: bool | None = Field(
        None,
        description="Work only on the mask's surroundings, at the model's full size. Default "
        "false.",
    )
    crop_padding: int | None = Field(
        None,
        ge=0,
        le=4096,
        description="Pixels of surroundings to keep with crop_to_mask. Default 32.",
    )
    outpaint: OutpaintFields | None = Field(
        None, description="Extend the canvas by this many pixels on each side."
    )

    @model_validator(mode="after")
    def _check_mask_fields(self) -> Self:
        for name in ("mask_mode", "soft_mask", "invert_mask", "mask_content"):
            if getattr(self, name) and self.mask is None:
                raise InvalidParameter(
                    f"{name} needs a mask; send one, or leave {name} out", param=name
                )
        if self.crop_to_mask and self.mask is None and self.outpaint is None:
            raise InvalidParameter(
                "crop_to_mask needs a mask or outpaint; send one, or leave crop_to_mask out",
                param="crop_to_mask",
            )
        return self


class ImageVariationRequest(ImageInputFields):
    """Draw an image like the given one."""

    prompt: Prompt | None = Field(None, description="What to draw; may be left out.")


def form_body(model: type[ImageFields]) -> dict[str, Any]:
    """OpenAPI's description of the body as a form: the files, and the model's fields as text."""
    body = image_form_body(model, ["image", *({"mask"} & model.model_fields.keys())])
    schema = body["requestBody"]["content"]["multipart/form-data"]["schema"]
    del schema["properties"]["images"]
    if model.model_fields["prompt"].is_required():
        schema["required"].append("prompt")
        schema["properties"]["prompt"] = {"type": "string", "example": "make the background blue"}
    return body


def _collect_inputs(data: dict[str, Any]) -> dict[str, Any]:
    """The body with its input images as `images`: forms call them `image`, one or a list."""
    given = {name: data[name] for name in _INPUT_NAMES if data.get(name) is not None}
    if len(given) > 1:
        raise InvalidParameter(
            f"{' and '.join(given)} mean the same; send one of them", param=next(iter(given))
        )
    rest = {name: value for name, value in data.items() if name not in _INPUT_NAMES}
    for value in given.values():
        rest["images"] = value if isinstance(value, list) else [value]
    return rest


def _is_given(part: Part) -> bool:
    """Whether a part holds a file. A blank field does not; an empty file with a name does, and is
    refused.

    Raises:
        InvalidParameter: the file has no content.
    """
    if not part.data and part.has_file_name:
        raise InvalidParameter(
            f"{part.name} is an empty file (0 bytes); send its content, or leave the field out",
            param="mask" if part.name == "mask" else "image",
        )
    return bool(part.data)


def _check_no_inputs(data: Mapping[str, Any]) -> None:
    with_image = ImageEditRequest.model_fields.keys() - ImageGenerationRequest.model_fields.keys()
    for name in (*_INPUT_NAMES, *sorted(with_image - NO_EFFECT_FIELDS.keys())):
        if data.get(name) not in (None, [], False):
            raise InvalidParameter(
                f"{name} needs an input image, which this route does not take; send both to "
                "/v1/images/edits",
                param=name,
            )
