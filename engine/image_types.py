"""The vocabulary of image requests: what is asked for and what comes back.

Plain frozen dataclasses like those of `engine.types`, free of torch and of wire libraries.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from engine.types import AdaptableInfo, Event, Request, Stats


class ImageTask(StrEnum):
    """What a request does with its input image, if it has one."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_IMAGE = "image_to_image"
    """Noise the image part of the way (`strength`) and denoise it towards the prompt."""
    INPAINT = "inpaint"
    """Redraw under the mask; also outpainting, where the mask is the new part of the canvas."""
    EDIT = "edit"
    """Follow an instruction: InstructPix2Pix, Kontext."""
    UPSCALE = "upscale"
    """Draw the image larger, with the detail that its size could not hold."""
    RESTORE = "restore"
    """Enlarge the image and redraw it in part, in tiles, pulled towards what it was."""


class MaskContent(StrEnum):
    """What stands under a mask before it is redrawn. It shows through at a strength below 1."""

    ORIGINAL = "original"
    FILL = "fill"
    """The colours around the mask, smoothly continued."""


class PromptSyntax(StrEnum):
    """How weights are written in a prompt; see `engine.diffusion.prompt`."""

    PLAIN = "plain"
    A1111 = "a1111"
    COMFY = "comfy"
    COMPEL = "compel"


class GuidanceKind(StrEnum):
    """How a model is guided, which decides whether a negative prompt can act."""

    CLASSIFIER_FREE = "classifier_free"
    DISTILLED = "distilled"
    """The scale is an input of the denoiser (FLUX dev): one row, no negative prompt."""
    NONE = "none"
    """Few-step models without any guidance (FLUX schnell)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """An 8-bit image: rows from the top, channels interleaved, no padding.

    `channels` is 1 (mask or luminance), 3 (RGB) or 4 (RGB and straight alpha), all sRGB.
    """

    width: int
    height: int
    channels: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Faithfulness:
    """How closely an enlarged picture is to keep to its input, and what is to be said of that."""

    fidelity: float = 0.0
    """Share of its contradictions to the input that is taken back, 0 to 1."""
    face_guard: float = 0.0
    """By how much faces are drawn towards the input's, plainly enlarged, 0 to 1."""
    heat_map: bool = False
    """Whether a picture is wanted of where detail was added."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """Of an enlarged picture, made smaller again, with its input, over pixels and channels of the
    input's size."""

    psnr_db: float
    """Peak signal to error, in decibels: higher is closer."""
    rms_error: float
    """Root of the mean square of the error, in levels of 255."""
    share_changed: float
    """Of the input's pixels, those that come back visibly off in some channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """What is said of an enlarged picture."""

    consistency: Consistency
    num_faces: int | None = None
    """That were guarded; None: they were not to be."""
    heat_map: Pixels | None = None
    """RGB, of the input's size."""


@dataclass(frozen=True, slots=True)
class Examined:
    """An enlarged picture, and what is said of it."""

    pixels: Pixels
    examination: Examination


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpaint:
    """Pixels by which the canvas grows on each side."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class Enlarging(StrEnum):
    """How what a first pass has drawn becomes as large as the second one's picture."""

    LATENT = "latent"
    """Its latents, between the nearest four."""
    LATENT_ANTIALIASED = "latent-antialiased"
    LATENT_BICUBIC = "latent-bicubic"
    LATENT_BICUBIC_ANTIALIASED = "latent-bicubic-antialiased"
    LATENT_NEAREST = "latent-nearest"
    LATENT_NEAREST_EXACT = "latent-nearest-exact"
    LANCZOS = "lanczos"
    """The picture, which is decoded before and encoded again."""
    NEAREST = "nearest"
    """The picture, each pixel as a block."""

    @property
    def is_of_latents(self) -> bool:
        return self.startswith("latent")


@dataclass(frozen=True, slots=True, kw_only=True)
class HiresPass:
    """A second pass: what the first one has drawn is enlarged and redrawn in part, as an input
    image of IMAGE_TO_IMAGE is. What it does not say is as in the first."""

    width: int
    """Of the result, in pixels; a multiple of the model's `size_multiple`, as `height` is. Where
    its shape is another one than the first pass's, the middle is kept."""
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
    """How an image is made. Values are checked and defaults filled in by the server."""

    task: ImageTask
    width: int
    """Of the result, or of the first of two passes, in pixels; a multiple of the model's
    `size_multiple` for TEXT_TO_IMAGE. With an input image any size: the engine pads to the multiple
    and cuts back."""
    height: int
    num_inference_steps: int = 1
    """Of denoising; other stages count their own."""
    seed: int
    """Image i of the request uses seed + i; of several settings of adapters, image i of each."""
    n: int = 1
    negative_prompt: str = ""
    guidance_scale: float = 7.5
    """1 is off: the unconditional row is not computed."""
    image_guidance_scale: float = 1.5
    """Of InstructPix2Pix-like editing."""
    guidance_rescale: float = 0.0
    """phi of Lin et al. 2023 (arXiv 2305.08891), section 3.4."""
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    """Guidance acts on the steps within this share of the schedule, as diffusers' guiders count."""
    scheduler: str | None = None
    """One of the model's `schedulers`; None is its own."""
    strength: float = 0.8
    """Of IMAGE_TO_IMAGE, INPAINT and RESTORE: share of the schedule that is run; 1 starts from
    noise."""
    restoration: float = 2.0
    """Of RESTORE: the pull towards the input falls with this power of the noise."""
    noise_level: int = 0
    """Of UPSCALE: how much of the input is taken for noise, at most the model's
    `max_noise_level`."""
    clip_skip: int = 0
    """Layers of the CLIP text encoder to leave out at its end."""
    prompt_syntax: PromptSyntax = PromptSyntax.PLAIN
    feather: int = 4
    """Pixels over which the edge of what is drawn is blended, all of them within the mask or the
    new part of the canvas."""
    soft_mask: bool = False
    """Differential diffusion: a mask's grey levels say how much may change (arXiv 2306.00950)."""
    mask_content: MaskContent = MaskContent.ORIGINAL
    crop_to_mask: bool = False
    """Work on the mask's surroundings only, at the model's full size, and paste the result."""
    crop_padding: int = 32
    outpaint: Outpaint | None = None
    num_previews: int = 0
    """Previews per image, at equally spaced steps."""
    faithfulness: Faithfulness | None = None
    """Of UPSCALE and RESTORE; None: nothing is to be said of the result."""
    hires: HiresPass | None = None
    """Of TEXT_TO_IMAGE; None: one pass is all."""

    @property
    def result_size(self) -> tuple[int, int]:
        """Width and height of the picture that is answered with."""
        last = self.hires or self
        return last.width, last.height

    @property
    def second_pass(self) -> "ImageParams | None":
        """How an image is made of what the first pass has drawn; None: it is not."""
        hires = self.hires
        if hires is None:
            return None
        return replace(
            self,
            task=ImageTask.IMAGE_TO_IMAGE,
            width=hires.width,
            height=hires.height,
            num_inference_steps=hires.num_inference_steps,
            strength=hires.strength,
            guidance_scale=hires.guidance_scale,
            scheduler=hires.scheduler,
            negative_prompt=hires.negative_prompt,
            hires=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraUse:
    """A LoRA adapter of the model, and how strongly it acts; 0 is not at all."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest(Request["ImageEvent"]):
    """One prompt to draw, `params.n` times."""

    prompt: str
    params: ImageParams
    images: list[Pixels] = field(default_factory=list)
    """Input images, RGB or RGBA. Of several, `params.n` divided by their number is drawn from each,
    in their order; a mask needs one alone."""
    mask: Pixels | None = None
    """One channel, 255 where to edit, of the first image's size."""
    loras: list[list[LoraUse]] = field(default_factory=list)
    """Adapters to draw with. Of several settings, `params.n` divided by their number is drawn with
    each, in their order, with the same seeds and from the same input images."""

    @property
    def num_completions(self) -> int:
        return self.params.n

    @property
    def num_settings(self) -> int:
        """At least one: without adapters."""
        return max(1, len(self.loras))

    def setting_of(self, index: int) -> list[LoraUse]:
        """The adapters that an image is drawn with."""
        return self.loras[index * self.num_settings // self.params.n] if self.loras else []

    @property
    def adapter_names(self) -> tuple[str, ...]:
        return tuple({use.name: None for setting in self.loras for use in setting})


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEvent(Event):
    """What a step brought one image."""

    stage: str = ""
    """What is done to it, such as `denoise`."""
    step: int = 0
    """Steps done."""
    num_steps: int = 0
    preview: Pixels | None = None
    preview_index: int = 0
    image: Pixels | None = None
    """The result, with finish reason `stop`."""
    examination: Examination | None = None
    """Of the result, where one was asked for."""
    seed: int | None = None
    num_prompt_tokens: int = 0
    warnings: tuple[str, ...] = ()
    """What was asked for and cannot act, with the result."""
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    decode_time_s: float = 0.0
    """Spent on this image so far; a step's time counts for every image in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageStats(Stats):
    """Those of an image engine: images that are in a stage or being decoded, images that wait, and
    calls of stages for `num_steps`."""

    step_rows: int = 0
    """Rows (images times guidance branches) of the newest step."""
    step_time_s: float = 0.0
    num_rows: int = 0
    num_image_steps: int = 0
    """Steps summed over images."""
    megapixel_steps: float = 0.0
    num_images: int = 0
    """Images finished."""
    num_cancelled_steps: int = 0
    """Steps that cancelled images did not take any more."""
    encode_time_s: float = 0.0
    stage_time_s: float = 0.0
    decode_time_s: float = 0.0
    prompt_cache_queries: int = 0
    prompt_cache_hits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoisingFacts:
    """What a model that denoises is asked by."""

    guidance: GuidanceKind
    schedulers: tuple[str, ...]
    """Offered names, the model's own first."""
    default_steps: int
    default_guidance_scale: float
    default_edit_guidance_scale: float | None = None
    """Of instructions; None: as for prompts."""

    @property
    def default_scheduler(self) -> str:
        return self.schedulers[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalingFacts:
    """What a model that draws images larger is asked by."""

    scale: int
    """How many times it makes their sides."""
    default_noise_level: int
    max_noise_level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageModelInfo(AdaptableInfo):
    """Of an image model; `architecture` is the name of its family, such as `flux`."""

    tasks: tuple[ImageTask, ...]
    default_width: int
    default_height: int
    size_multiple: int
    """Width and height of a text-to-image result are multiples of it."""
    min_side: int
    max_pixels: int
    """Width times height at most."""
    denoising: DenoisingFacts | None
    """None: it does other things to images only."""
    upscaling: UpscalingFacts | None = None
    """Of one that does UPSCALE."""
    max_restored_pixels: int = 0
    """Width times height at most, of RESTORE."""
