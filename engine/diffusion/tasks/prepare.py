"""Turns a request's image and mask into the denoiser's input, and the drawn picture into the
answer.

The order is: outpainting's canvas → the requested size → the crop around the mask, if any → the
model's grid. `Preparation.finish` takes the same way back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from engine.contract.draw import (
    DrawParams,
    EditParams,
    ImageParams,
    ImageRequest,
    InpaintParams,
    MaskContent,
    Outpaint,
    RestoreParams,
    UpscaleParams,
)
from engine.contract.examination import Examined, Faithfulness
from engine.contract.pixels import Pixels
from engine.contract.reference_images import ReferenceFacts
from engine.diffusion.families.family import FamilyFacts
from engine.diffusion.prompt.text import PromptImage
from engine.diffusion.tasks import canvas
from engine.diffusion.tasks.checks import check_one_edit, check_request
from engine.diffusion.tasks.composite import composite
from engine.diffusion.tasks.crop import Region, region_of_mask, working_size
from engine.diffusion.tasks.mask import latent_mask, mask_levels, paste_weights
from engine.diffusion.tasks.references import prompt_image, reference_tensor
from engine.diffusion.tasks.resize import lift_off_white, resize_image, resize_mask
from engine.diffusion.tasks.seam import match_colours, trust_levels
from engine.errors import InvalidParameter
from engine.pictures.alpha import flatten
from engine.pictures.arrays import Bools, Bytes, array_of, pixels_of
from engine.pictures.tensors import as_tensor, to_signed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Preparation:
    """The denoiser's input for a request, and the functions that finish the picture.

    Attributes:
        image: `[1, 3, H, W]` fp32 in [-1, 1], RGBA over white; None without an input image. For
            UPSCALE it is small: `width` and `height` divided by the model's scale.
        references: the reference images, like `image`, each of its own size; empty in models that
            see the input as `image` alone.
        mask: `[1, 1, H, W]` in [0, 1], 1 where to redraw; in {0, 1} unless the mask is soft.
        prompt_images: the same images, as the text encoder sees them, if it does.
        latent_mask: the mask over latent cells, `[1, 1, h, w]`.
        width, height: the size at which the image is drawn, multiples of the model's
            `size_multiple`.
        finish: turns the drawn picture (RGB, of this size) into the answer. Every pixel outside the
            mask then has the input's bytes. It is pure, so any thread may call it.
        show: the same for a preview, which may be smaller, at less cost: the colours at a mask's
            edge are not matched. Previews of RESTORE and UPSCALE stay as they are.
    """

    image: torch.Tensor | None
    mask: torch.Tensor | None
    latent_mask: torch.Tensor | None
    width: int
    height: int
    finish: Callable[[Pixels], Pixels | Examined]
    show: Callable[[Pixels], Pixels]
    references: tuple[torch.Tensor, ...] = ()
    prompt_images: tuple[PromptImage, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Picture:
    """The input at the size of the answer.

    Attributes:
        base: `[H, W, C]`, of which the answer keeps what is outside the mask.
        seen: `[H, W, 3]`, the same over white; new parts repeat the edges.
        levels: the levels `[H, W]` of the mask and the new area.
        new: the area that outpainting added.
    """

    base: Bytes
    seen: Bytes
    levels: Bytes
    new: Bools | None

    @property
    def height(self) -> int:
        return int(self.base.shape[0])

    @property
    def width(self) -> int:
        return int(self.base.shape[1])

    @property
    def whole(self) -> Region:
        return Region(0, 0, self.width, self.height)


def prepare(request: ImageRequest, facts: FamilyFacts) -> Preparation:
    """Prepare a request's images, masks and sizes for denoising.

    RGBA input is laid over white. With a mask the answer keeps the input's alpha outside it, and
    the redrawn part is opaque; without a mask the answer is RGB.

    Raises:
        InvalidParameter: image, mask or sizes do not fit the task, the model or each other.
    """
    params = request.params
    if isinstance(params, DrawParams):
        return prepare_without_image(params, facts)
    if isinstance(params, EditParams) and facts.references is not None:
        return _from_references(request, facts, facts.references)
    check_request(request)
    if isinstance(params, EditParams) and facts.does_one_edit:
        check_one_edit(request.prompt)
    if isinstance(params, UpscaleParams):
        return _to_upscale(request, params, facts)
    if isinstance(params, InpaintParams):
        return _to_paint(request, params, facts)
    return _to_redraw(request, params, facts)


def prepare_without_image(params: ImageParams, facts: FamilyFacts) -> Preparation:
    """Prepare an image that is drawn from a prompt alone.

    Raises:
        InvalidParameter: the size does not fit the model.
    """
    multiple = facts.size_multiple
    if params.width % multiple or params.height % multiple or min(params.width, params.height) < 1:
        raise InvalidParameter(
            f"size is {params.width}x{params.height}; both must be multiples of {multiple}",
            param="size",
        )
    _check_area(params.width, params.height, facts.max_pixels)
    return Preparation(
        image=None,
        mask=None,
        latent_mask=None,
        width=params.width,
        height=params.height,
        finish=_same,
        show=_scaled(params.width, params.height, _same),
    )


def _to_redraw(request: ImageRequest, params: ImageParams, facts: FamilyFacts) -> Preparation:
    """The whole image, at the size of the answer."""
    original, restores = array_of(request.images[0]), isinstance(params, RestoreParams)
    width, height = _grid_size(params.width, params.height, facts)
    _check_area(width, height, facts.max_restored_pixels if restores else facts.max_pixels)
    seen = resize_image(flatten(original), params.width, params.height)
    image = to_signed(canvas.pad_to(seen, width, height))
    if isinstance(params, RestoreParams):
        recoloured = _recoloured(original, params.width, params.height)
        finish = _examined(recoloured, original, params.faithfulness)
        return _preparation(image, None, facts, finish, _same)
    cut = _cut(params.width, params.height)
    return _preparation(image, None, facts, cut, _scaled(width, height, cut))


def _to_paint(request: ImageRequest, params: InpaintParams, facts: FamilyFacts) -> Preparation:
    """The image or the mask's surroundings, with the area to redraw."""
    picture = _picture(request, params)
    region, (width, height) = _working_area(picture, params, facts)
    _check_area(width, height, facts.max_pixels)
    filled = _filled(picture, params.mask_content)
    image = to_signed(_seen(picture, filled, region, width, height, is_cropped=params.crop_to_mask))
    fit_mask = resize_mask if params.crop_to_mask else canvas.pad_to
    mask = as_tensor(fit_mask(picture.levels[region.window], width, height))[None] / 255
    trust = trust_levels(latent_mask(mask, facts.vae_factor), facts.vae_factor)
    weights = paste_weights(picture.levels > 0, params.feather)
    paste = partial(_paste, picture, weights, region, is_cropped=params.crop_to_mask)
    show = _scaled(width, height, paste(None))
    prepared = _preparation(image, mask, facts, paste(trust), show)
    if facts.references is not None and facts.references.sees_inpainted:
        return replace(prepared, references=(image,))
    return prepared


def _from_references(
    request: ImageRequest, facts: FamilyFacts, references: ReferenceFacts
) -> Preparation:
    """The input images apart from the result, whose size they do not decide."""
    params, num_images = request.params, len(request.images)
    if not 1 <= num_images <= references.max_images:
        raise InvalidParameter(
            f"there are {num_images} input images; this model takes 1 to {references.max_images}",
            param="image",
        )
    width, height = _grid_size(params.width, params.height, facts)
    _check_area(width, height, facts.max_pixels)
    cut = _cut(params.width, params.height)
    tensors = tuple(reference_tensor(image, references) for image in request.images)
    seen = request.images if references.prompt_pixels else ()
    return Preparation(
        image=None,
        mask=None,
        latent_mask=None,
        width=width,
        height=height,
        finish=cut,
        show=_scaled(width, height, cut),
        references=tensors,
        prompt_images=tuple(prompt_image(image, references) for image in seen),
    )


def _to_upscale(request: ImageRequest, params: UpscaleParams, facts: FamilyFacts) -> Preparation:
    """The image unchanged, except that its right and bottom edges repeat if the model needs
    more."""
    upscaling = facts.upscaling
    if upscaling is None or not 0 <= params.noise_level <= upscaling.max_noise_level:
        limit = 0 if upscaling is None else upscaling.max_noise_level
        raise InvalidParameter(
            f"noise_level is {params.noise_level}; this model takes 0 to {limit}",
            param="noise_level",
        )
    small, scale = array_of(request.images[0]), upscaling.scale
    least = math.ceil(facts.min_side / scale)
    height, width = (max(side, least) for side in small.shape[:2])
    if width * height * scale**2 > facts.max_pixels:
        raise InvalidParameter(
            f"an image of {width}x{height} px, enlarged {scale} times, is "
            f"{width * height * scale**2} pixels; this model draws at most {facts.max_pixels}: "
            f"send a smaller image",
            param="image",
        )
    return Preparation(
        image=to_signed(canvas.pad_to(flatten(small), width, height)),
        mask=None,
        latent_mask=None,
        width=width * scale,
        height=height * scale,
        finish=_examined(
            _enlarged(small, scale, params.width, params.height), small, params.faithfulness
        ),
        show=_same,
    )


def _enlarged(small: Bytes, scale: int, width: int, height: int) -> Callable[[Pixels], Pixels]:
    """A function that cuts a drawn picture to the image's shape, adds the image's alpha and resizes
    it."""

    def finish(drawn: Pixels) -> Pixels:
        picture = array_of(drawn)[: small.shape[0] * scale, : small.shape[1] * scale]
        if small.shape[2] == 4:
            picture = lift_off_white(picture, small[..., 3:])
        return pixels_of(resize_image(picture, width, height))

    return finish


def _examined(
    finish: Callable[[Pixels], Pixels], original: Bytes, wanted: Faithfulness | None
) -> Callable[[Pixels], Pixels | Examined]:
    """`finish`, followed by the wanted examination."""
    if wanted is None:
        return finish

    # It imports OpenCV and scipy, which are slow to load and not needed by other tasks.
    from engine.fidelity.aftercare import Aftercare

    def examined(drawn: Pixels) -> Examined:
        picture = array_of(finish(drawn))
        height, width = picture.shape[:2]
        care = Aftercare(original, height, width, wanted)
        rows = care.take(picture)
        held, examination = care.end()
        return Examined(pixels_of(np.concatenate([rows, held])), examination)

    return examined


def _preparation(
    image: torch.Tensor,
    mask: torch.Tensor | None,
    facts: FamilyFacts,
    finish: Callable[[Pixels], Pixels | Examined],
    show: Callable[[Pixels], Pixels],
) -> Preparation:
    return Preparation(
        image=image,
        mask=mask,
        latent_mask=None if mask is None else latent_mask(mask, facts.vae_factor),
        width=image.shape[3],
        height=image.shape[2],
        finish=finish,
        show=show,
    )


def _picture(request: ImageRequest, params: InpaintParams) -> _Picture:
    """The input on its canvas and at the size of the answer, in whose pixels the feather counts."""
    image = request.images[0]
    size = (params.width, params.height)
    grow = params.outpaint or Outpaint()
    array = array_of(image)
    base = resize_image(canvas.extend_image(array, grow), *size)
    seen = base
    if image.channels == 4:
        seen = resize_image(canvas.extend_image(flatten(array), grow), *size)
    levels = np.zeros((params.height, params.width), np.uint8)
    if request.mask is not None:
        marked = canvas.extend_mask(_levels(request.mask, image, params), grow)
        levels = resize_mask(marked, *size)
    if params.outpaint is None:
        return _Picture(base=base, seen=seen, levels=levels, new=None)
    added = canvas.new_area(image.width, image.height, grow).astype(np.uint8)
    new = resize_mask(added, *size).astype(np.bool_)
    drawn = np.where(new, 255, 0).astype(np.uint8)
    return _Picture(base=base, seen=seen, levels=np.maximum(levels, drawn), new=new)


def _levels(mask: Pixels, image: Pixels, params: InpaintParams) -> Bytes:
    levels = mask_levels(mask, image, soft=params.soft_mask)
    if levels.any() or params.outpaint is not None:
        return levels
    hint = "" if params.soft_mask else "; levels below half count only with soft_mask"
    raise InvalidParameter(f"mask is empty: it marks no pixel to redraw{hint}", param="mask")


def _filled(picture: _Picture, content: MaskContent) -> Bools | None:
    """The area in which the model sees the surrounding colours instead of the input."""
    return picture.new if content is MaskContent.ORIGINAL else picture.levels > 0


def _seen(
    picture: _Picture,
    filled: Bools | None,
    region: Region,
    width: int,
    height: int,
    *,
    is_cropped: bool,
) -> Bytes:
    """The picture that the model sees, at its working size."""
    fit_image = resize_image if is_cropped else canvas.pad_to
    seen = fit_image(picture.seen[region.window], width, height)
    if filled is None:
        return seen
    fit_mask = resize_mask if is_cropped else canvas.pad_to
    area = fit_mask(filled[region.window].astype(np.uint8), width, height)
    return canvas.fill_new(seen, area.astype(np.bool_))


def _working_area(
    picture: _Picture, params: InpaintParams, facts: FamilyFacts
) -> tuple[Region, tuple[int, int]]:
    """The part that is drawn, and the size at which it is drawn."""
    if params.crop_to_mask:
        ratio = facts.default_width / facts.default_height
        region = region_of_mask(picture.levels > 0, params.crop_padding, ratio)
        return region, working_size(region, facts)
    return picture.whole, _grid_size(picture.width, picture.height, facts)


def _grid_size(width: int, height: int, facts: FamilyFacts) -> tuple[int, int]:
    """The smallest size on the model's grid that holds this one."""
    multiple = facts.size_multiple
    width, height = (
        math.ceil(max(side, facts.min_side) / multiple) * multiple for side in (width, height)
    )
    return width, height


def _same(drawn: Pixels) -> Pixels:
    return drawn


def _scaled(
    width: int, height: int, finish: Callable[[Pixels], Pixels]
) -> Callable[[Pixels], Pixels]:
    """`finish` for a picture of any size, which it resizes first."""
    return lambda preview: finish(pixels_of(resize_image(array_of(preview), width, height)))


def _cut(width: int, height: int) -> Callable[[Pixels], Pixels]:
    return lambda drawn: pixels_of(array_of(drawn)[:height, :width])


def _recoloured(original: Bytes, width: int, height: int) -> Callable[[Pixels], Pixels]:
    """A function that cuts a drawn picture to the answer's size and applies the input's colours and
    alpha."""

    from engine.fidelity.wavelet_colour import wavelet_colour

    def finish(drawn: Pixels) -> Pixels:
        cut = array_of(drawn)[:height, :width]
        recoloured = wavelet_colour(cut, flatten(original))
        if original.shape[2] == 4:
            recoloured = lift_off_white(recoloured, original[..., 3:])
        return pixels_of(recoloured)

    return finish


def _paste(
    picture: _Picture, weights: Bytes, region: Region, trust: Bytes | None, *, is_cropped: bool
) -> Callable[[Pixels], Pixels]:
    """A function that puts a drawn picture back into the input.

    Args:
        weights: the answer's weights `[H, W]`.
        trust: the trust in the drawn picture, before it is resized or cut to the region; None
            leaves its colours as they are.
    """
    window = region.window

    if trust is not None:
        if is_cropped:
            # A pixel takes the largest doubt of all pixels that it covers.
            trust = ~resize_mask(~trust, region.width, region.height)
        trust = trust[: region.height, : region.width]

    def finish(drawn: Pixels) -> Pixels:
        part = array_of(drawn)
        if is_cropped:
            part = resize_image(part, region.width, region.height)
        part = part[: region.height, : region.width]
        if trust is not None:
            part = match_colours(part, picture.seen[window], trust)
        answer = picture.base.copy()
        answer[window] = composite(picture.base[window], part, weights[window])
        return pixels_of(answer)

    return finish


def _check_area(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InvalidParameter(
            f"{width}x{height} px is {width * height} pixels; this model draws at most "
            f"{max_pixels}: ask for a smaller size or redraw only a part with crop_to_mask",
            param="size",
        )
