"""Requests for images and their answers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import ClassVar, Generic

from typing_extensions import TypeVar  # the standard library's has no default before Python 3.13

from engine.contract.examination import Examination, Faithfulness
from engine.contract.pixels import Pixels
from engine.contract.reference_images import ReferenceFacts
from engine.contract.request import AdaptableInfo, Event, Request, Stats
from engine.errors import InvalidParameter


class ImageTask(StrEnum):
    """How a request uses its input image, if it has one."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_IMAGE = "image_to_image"
    """Noise the image part of the way (`strength`) and denoise it towards the prompt."""
    INPAINT = "inpaint"
    """Redraw under the mask. Outpainting is the same, with the new part of the canvas as the
    mask."""
    EDIT = "edit"
    """Follow an instruction, as InstructPix2Pix, Kontext and FLUX.2 do."""
    UPSCALE = "upscale"
    """Draw the image larger, with detail that its size could not show."""
    RESTORE = "restore"
    """Enlarge the image and redraw part of it in tiles, keeping it close to the original."""


class MaskContent(StrEnum):
    """What fills the mask's area before it is redrawn. It shows through at a strength below 1."""

    ORIGINAL = "original"
    FILL = "fill"
    """The colours around the mask, continued smoothly."""


class PromptSyntax(StrEnum):
    """How weights are written in a prompt; see `engine.diffusion.prompt`."""

    PLAIN = "plain"
    A1111 = "a1111"
    COMFY = "comfy"
    COMPEL = "compel"


class GuidanceKind(StrEnum):
    """How a model is guided, which decides whether a negative prompt has an effect."""

    CLASSIFIER_FREE = "classifier_free"
    DISTILLED = "distilled"
    """The scale is an input of the denoiser (FLUX dev): one row and no negative prompt."""
    NONE = "none"
    """A few-step model without guidance (FLUX schnell)."""


MAX_FEATHER = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpaint:
    """The pixels by which the canvas grows on each side."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0

    def check(self) -> None:
        """Check that the canvas grows.

        Raises:
            InvalidParameter: it does not, or a side would shrink.
        """
        sides = (self.left, self.right, self.top, self.bottom)
        if min(sides) < 0 or max(sides) == 0:
            raise InvalidParameter(
                f"outpaint grows the image by {sides} px (left, right, top, bottom); "
                "each must be 0 or more and at least one above 0",
                param="outpaint",
            )


class Enlarging(StrEnum):
    """How the first pass's result is enlarged for the second pass."""

    LATENT = "latent"
    """Enlarge the latents, interpolating between the nearest four."""
    LATENT_ANTIALIASED = "latent-antialiased"
    LATENT_BICUBIC = "latent-bicubic"
    LATENT_BICUBIC_ANTIALIASED = "latent-bicubic-antialiased"
    LATENT_NEAREST = "latent-nearest"
    LATENT_NEAREST_EXACT = "latent-nearest-exact"
    LANCZOS = "lanczos"
    """Decode the picture, enlarge it and encode it again."""
    NEAREST = "nearest"
    """Enlarge the picture with each pixel as a block."""

    @property
    def is_of_latents(self) -> bool:
        return self.startswith("latent")


@dataclass(frozen=True, slots=True, kw_only=True)
class HiresPass:
    """A second pass, which enlarges the first one's result and redraws part of it, like an input
    image of IMAGE_TO_IMAGE. Values that it does not give are those of the first pass."""

    width: int
    """The width of the result in pixels; like `height` a multiple of the model's `size_multiple`.
    If the two passes have different aspect ratios, the middle of the picture is kept."""
    height: int
    enlarging: Enlarging
    num_inference_steps: int
    strength: float
    guidance_scale: float
    scheduler: str | None
    prompt: str
    negative_prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParams:
    """How an image is made: what all tasks share. The server has checked the values and filled in
    defaults."""

    task: ClassVar[ImageTask]
    width: int
    """The width of the result, or of the first of two passes, in pixels. For TEXT_TO_IMAGE a
    multiple of the model's `size_multiple`; with an input image any size, which the engine pads to
    the multiple and cuts back."""
    height: int
    num_inference_steps: int = 1
    """The number of denoising steps; other stages have their own counts."""
    seed: int
    """Image i of the request uses seed + i; with several adapter settings, image i of each does."""
    n: int = 1
    negative_prompt: str = ""
    guidance_scale: float = 7.5
    """The strength of guidance; 1 is off, and the unconditional row is not computed."""
    guidance_rescale: float = 0.0
    """The value phi of Lin et al. 2023 (arXiv 2305.08891), section 3.4."""
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    """Guidance acts on steps up to this share of the schedule, counted as diffusers' guiders do."""
    scheduler: str | None = None
    """One of the model's `schedulers`; None is the model's own."""
    clip_skip: int = 0
    """The number of last layers of the CLIP text encoder to leave out."""
    prompt_syntax: PromptSyntax = PromptSyntax.PLAIN
    num_previews: int = 0
    """The number of previews per image, at equally spaced steps."""

    @property
    def share(self) -> float:
        """The share of the schedule that is run."""
        return 1.0

    @property
    def num_steps(self) -> int:
        """The number of denoising steps of this pass, as diffusers counts them."""
        return num_steps_at(self.num_inference_steps, self.share)

    @property
    def passes(self) -> "tuple[ImageParams, ...]":
        """The parameters of each pass over the image."""
        return (self,)

    @property
    def result_size(self) -> tuple[int, int]:
        """The width and height of the final picture."""
        last = self.passes[-1]
        return last.width, last.height

    def check(self, *, has_mask: bool) -> None:
        """Check that the fields agree with each other and with the request's mask.

        Raises:
            InvalidParameter: a field is wrong; the message names it.
        """


def num_steps_at(num_inference_steps: int, share: float) -> int:
    """The number of steps that are run if only this last share of a schedule is."""
    return min(int(num_inference_steps * share), num_inference_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class RedrawParams(ImageParams):
    """An input image is redrawn from a point on its way to noise."""

    task: ClassVar[ImageTask] = ImageTask.IMAGE_TO_IMAGE
    strength: float = 0.8
    """The share of the schedule that is run; 1 starts from noise."""

    @property
    def share(self) -> float:
        return self.strength


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawParams(ImageParams):
    """An image is drawn from a prompt alone."""

    task: ClassVar[ImageTask] = ImageTask.TEXT_TO_IMAGE
    hires: HiresPass | None = None
    """The second pass; None is a single pass."""

    @property
    def passes(self) -> tuple[ImageParams, ...]:
        second = self.second_pass
        return (self,) if second is None else (self, second)

    @property
    def second_pass(self) -> RedrawParams | None:
        """The parameters of the second pass; None if there is none."""
        hires = self.hires
        if hires is None:
            return None
        shared = {each.name: getattr(self, each.name) for each in fields(ImageParams)}
        own = {name: getattr(hires, name) for name in shared.keys() & HiresPass.__slots__}
        return RedrawParams(**shared | own, strength=hires.strength)


@dataclass(frozen=True, slots=True, kw_only=True)
class InpaintParams(RedrawParams):
    """An input image is redrawn under its mask, and in the new part of its canvas."""

    task: ClassVar[ImageTask] = ImageTask.INPAINT
    feather: int = 4
    """The width in pixels over which the edge of the drawn part is blended; they lie within the
    mask or the new part of the canvas."""
    soft_mask: bool = False
    """Differential diffusion: grey levels of a mask say how much may change (arXiv 2306.00950)."""
    mask_content: MaskContent = MaskContent.ORIGINAL
    crop_to_mask: bool = False
    """Whether to work only on the mask's surroundings, at the model's full size, and paste the
    result."""
    crop_padding: int = 32
    outpaint: Outpaint | None = None

    def check(self, *, has_mask: bool) -> None:
        if not 0 <= self.feather <= MAX_FEATHER:
            raise InvalidParameter(
                f"feather is {self.feather} px; it must be 0 to {MAX_FEATHER}", param="feather"
            )
        if self.crop_padding < 0:
            raise InvalidParameter("crop_padding must not be negative", param="crop_padding")
        if not has_mask and self.outpaint is None:
            raise InvalidParameter("inpainting needs a mask or outpaint", param="mask")
        if self.outpaint is not None:
            self.outpaint.check()


@dataclass(frozen=True, slots=True, kw_only=True)
class EditParams(ImageParams):
    """An input image is changed as an instruction says."""

    task: ClassVar[ImageTask] = ImageTask.EDIT
    image_guidance_scale: float = 1.5
    """The strength of image guidance, as with InstructPix2Pix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleParams(ImageParams):
    """An input image is drawn larger."""

    task: ClassVar[ImageTask] = ImageTask.UPSCALE
    noise_level: int = 0
    """How much of the input is treated as noise, up to the model's `max_noise_level`."""
    faithfulness: Faithfulness | None = None
    """What to do for the result's faithfulness; None reports nothing about the result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreParams(RedrawParams):
    """An input image is enlarged and redrawn in tiles."""

    task: ClassVar[ImageTask] = ImageTask.RESTORE
    restoration: float = 2.0
    """The power of the noise with which the pull towards the input falls."""
    faithfulness: Faithfulness | None = None
    """As for UPSCALE."""


PARAMS: Mapping[ImageTask, type[ImageParams]] = {
    one.task: one
    for one in (DrawParams, RedrawParams, InpaintParams, EditParams, UpscaleParams, RestoreParams)
}
"""The parameters of each task."""

ParamsT = TypeVar("ParamsT", bound=ImageParams, default=ImageParams, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraUse:
    """A LoRA adapter of the model and its strength; 0 is no effect."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest(Request["ImageEvent"], Generic[ParamsT]):
    """A prompt to draw `params.n` times."""

    prompt: str
    params: ParamsT
    images: list[Pixels] = field(default_factory=list)
    """The input images, RGB or RGBA. With several, each is used for an equal share of `params.n`
    images, in order, unless the model combines them (`combines_images`). A mask needs exactly
    one."""
    mask: Pixels | None = None
    """A one-channel mask of the first image's size, 255 where to edit."""
    loras: list[list[LoraUse]] = field(default_factory=list)
    """The adapter settings. With several, each draws an equal share of `params.n` images, in order,
    with the same seeds and from the same input images."""

    @property
    def variant(self) -> str:
        return self.params.task

    @property
    def num_completions(self) -> int:
        return self.params.n

    @property
    def num_settings(self) -> int:
        """The number of adapter settings; 1 if there are no adapters."""
        return max(1, len(self.loras))

    def setting_of(self, index: int) -> list[LoraUse]:
        """The adapters of the image with this index."""
        return self.loras[index * self.num_settings // self.params.n] if self.loras else []

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple({use.name: None for setting in self.loras for use in setting})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEvent(Event):
    """What a step did for one image."""

    stage: str = ""
    """The name of its stage, such as `denoise`."""
    step: int = 0
    """The number of steps done."""
    num_steps: int = 0
    preview: Pixels | None = None
    preview_index: int = 0
    image: Pixels | None = None
    """The result, if the finish reason is `stop`."""
    examination: Examination | None = None
    """The findings about the result, if they were asked for."""
    seed: int | None = None
    num_prompt_tokens: int = 0
    warnings: tuple[str, ...] = ()
    """Parts of the request that had no effect; sent with the result."""
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    decode_time_s: float = 0.0
    """The time spent on this image so far; the time of a shared step counts for every image in
    it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStats(Stats):
    """Statistics of an image engine: images in a stage or being decoded, images that wait, and
    calls of stages as `num_steps`."""

    step_rows: int = 0
    """The rows (images times guidance branches) of the newest step."""
    step_time_s: float = 0.0
    num_rows: int = 0
    num_image_steps: int = 0
    """The number of steps, summed over images."""
    megapixel_steps: float = 0.0
    num_images: int = 0
    """The number of finished images."""
    num_cancelled_steps: int = 0
    """The number of steps that cancelled images skipped."""
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    decode_time_s: float = 0.0
    prompt_cache_queries: int = 0
    prompt_cache_hits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingFacts:
    """The facts about a model that denoises."""

    guidance: GuidanceKind
    schedulers: tuple[str, ...]
    """The names of the schedulers on offer, the model's own first."""
    default_steps: int
    default_guidance_scale: float
    default_edit_guidance_scale: float | None = None
    """The default guidance scale of instructions; None is the one of prompts."""

    @property
    def default_scheduler(self) -> str:
        return self.schedulers[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalingFacts:
    """The facts about a model that draws images larger."""

    scale: int
    """The factor by which it enlarges each side."""
    default_noise_level: int
    max_noise_level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModelInfo(AdaptableInfo):
    """The facts about an image model; `architecture` is the name of its family, such as `flux`."""

    tasks: tuple[ImageTask, ...]
    default_width: int
    default_height: int
    size_multiple: int
    """The number that divides width and height of a text-to-image result."""
    min_side: int
    max_pixels: int
    """The most pixels, width times height."""
    denoising: DenoisingFacts | None
    """Facts for denoising; None if the model does not draw from prompts."""
    upscaling: UpscalingFacts | None = None
    """Facts for UPSCALE; None if the model does not do it."""
    max_restored_pixels: int = 0
    """The most pixels of a RESTORE result, width times height."""
    references: ReferenceFacts | None = None
    """Facts for EDIT; None if the model sees one image, at the size of the result."""


def combines_images(task: ImageTask, references: ReferenceFacts | None) -> bool:
    """Whether all input images of a request go into each result."""
    return task is ImageTask.EDIT and references is not None and references.combines
