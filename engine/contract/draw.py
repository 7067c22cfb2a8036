"""Requests for images and their answers."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from engine.contract.examination import Examination, Faithfulness
from engine.contract.pixels import Pixels
from engine.contract.request import AdaptableInfo, Event, Request, Stats


class ImageTask(StrEnum):
    """How a request uses its input image, if it has one."""

    TEXT_TO_IMAGE = "text_to_image"
    IMAGE_TO_IMAGE = "image_to_image"
    """Noise the image part of the way (`strength`) and denoise it towards the prompt."""
    INPAINT = "inpaint"
    """Redraw under the mask. Outpainting is the same, with the new part of the canvas as the
    mask."""
    EDIT = "edit"
    """Follow an instruction, as InstructPix2Pix and Kontext do."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Outpaint:
    """The pixels by which the canvas grows on each side."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


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
    """How an image is made. The server has checked the values and filled in defaults."""

    task: ImageTask
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
    image_guidance_scale: float = 1.5
    """The strength of image guidance in editing as with InstructPix2Pix."""
    guidance_rescale: float = 0.0
    """The value phi of Lin et al. 2023 (arXiv 2305.08891), section 3.4."""
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    """Guidance acts on steps up to this share of the schedule, counted as diffusers' guiders do."""
    scheduler: str | None = None
    """One of the model's `schedulers`; None is the model's own."""
    strength: float = 0.8
    """The share of the schedule that is run for IMAGE_TO_IMAGE, INPAINT and RESTORE; 1 starts from
    noise."""
    restoration: float = 2.0
    """The power of the noise with which RESTORE's pull towards the input falls."""
    noise_level: int = 0
    """How much of the input UPSCALE treats as noise, up to the model's `max_noise_level`."""
    clip_skip: int = 0
    """The number of last layers of the CLIP text encoder to leave out."""
    prompt_syntax: PromptSyntax = PromptSyntax.PLAIN
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
    num_previews: int = 0
    """The number of previews per image, at equally spaced steps."""
    faithfulness: Faithfulness | None = None
    """Faithfulness of UPSCALE and RESTORE; None reports nothing about the result."""
    hires: HiresPass | None = None
    """The second pass of TEXT_TO_IMAGE; None is a single pass."""

    @property
    def result_size(self) -> tuple[int, int]:
        """The width and height of the final picture."""
        last = self.hires or self
        return last.width, last.height

    @property
    def second_pass(self) -> "ImageParams | None":
        """The parameters of the second pass; None if there is none."""
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
    """A LoRA adapter of the model and its strength; 0 is no effect."""

    name: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRequest(Request["ImageEvent"]):
    """A prompt to draw `params.n` times."""

    prompt: str
    params: ImageParams
    images: list[Pixels] = field(default_factory=list)
    """The input images, RGB or RGBA. With several, each is used for an equal share of `params.n`
    images, in order. A mask needs exactly one."""
    mask: Pixels | None = None
    """A one-channel mask of the first image's size, 255 where to edit."""
    loras: list[list[LoraUse]] = field(default_factory=list)
    """The adapter settings. With several, each draws an equal share of `params.n` images, in order,
    with the same seeds and from the same input images."""

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
