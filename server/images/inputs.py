"""Reads the input images of a request: from what the client sent to pixels."""

from dataclasses import dataclass, field

import numpy as np

from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter
from server.http.engine_run import EngineRun
from server.images.picture_wire import Reading
from server.images.pictures import EncodedPicture, Pictures
from server.protocol.images import ImageEditRequest, ImageInputFields


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """The decoded images; the mask belongs to the first."""

    images: list[Pixels] = field(default_factory=list)
    mask: Pixels | None = None
    mask_is_empty: bool = False
    """Whether the mask marks nothing strongly enough."""


async def read_inputs(
    body: ImageInputFields,
    pictures: Pictures,
    run: EngineRun,
    *,
    max_pixels: int,
    model: str,
    priority: int,
) -> ImageInputs:
    """Decode all files, once there is memory for them.

    Args:
        max_pixels: limit of all images together, so that many small files cannot fill the memory.

    Raises:
        InvalidParameter: a file cannot be used, or the mask's size differs from the image's.
        UnsupportedFeature: a link or a file id.
    """
    files = await _open_images(body, pictures, max_pixels)
    edit = body if isinstance(body, ImageEditRequest) and body.mask is not None else None
    if edit is not None:
        files.append(await _open_mask(edit, pictures, max_pixels))
    images = await pictures.decode(files, run, model, priority)
    if edit is None:
        return ImageInputs(images)
    mask = images.pop()
    _check_same_size(mask, images[0])
    return ImageInputs(images, mask, _is_empty(mask, soft=bool(edit.soft_mask)))


async def _open_images(
    body: ImageInputFields, pictures: Pictures, max_pixels: int
) -> list[EncodedPicture]:
    files: list[EncodedPicture] = []
    left = max_pixels
    for number, reference in enumerate(body.images):
        param = "image" if len(body.images) == 1 else f"images[{number}]"
        files.append(await pictures.open(reference, param, max_pixels=max(1, left)))
        left -= files[-1].width * files[-1].height
    return files


async def _open_mask(body: ImageEditRequest, pictures: Pictures, max_pixels: int) -> EncodedPicture:
    assert body.mask is not None
    return await pictures.open(
        body.mask,
        "mask",
        max_pixels=max_pixels,
        reading=Reading.MASK,
        mask_mode=body.mask_mode or "auto",
        inverts=bool(body.invert_mask),
    )


def _check_same_size(mask: Pixels, image: Pixels) -> None:
    if (mask.width, mask.height) != (image.width, image.height):
        raise InvalidParameter(
            f"the mask has {mask.width}x{mask.height} pixels and the image "
            f"{image.width}x{image.height}; send a mask of the image's size",
            param="mask",
        )


def _is_empty(mask: Pixels, *, soft: bool) -> bool:
    brightest = int(np.frombuffer(mask.data, dtype=np.uint8).max(initial=0))
    return brightest < (1 if soft else 128)
