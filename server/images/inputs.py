"""Input images of a request, from what the client sent to pixels. Blocking: call it in a thread.

Links are refused, never fetched: a server that follows them reaches what its clients cannot.
"""

import binascii
import re
from dataclasses import dataclass, field

import numpy as np

from engine.errors import InvalidParameter, UnsupportedFeature
from engine.image_types import Pixels
from server.images.files import decode_image, decode_mask
from server.protocol.image_inputs import ImageReference, UploadedImage
from server.protocol.images import ImageEditRequest, ImageInputFields

MAX_INPUT_SIDE = 16_384

_DATA_URL = re.compile(r"data:[a-z0-9/+.-]{0,64}(;[a-z0-9=-]{1,64})*;base64,", re.IGNORECASE)
_WHITESPACE = b" \t\r\n"
"""As in MIME's base64, which tools write in lines; none of it is data."""


@dataclass(frozen=True, slots=True)
class ImageInputs:
    """The decoded images, the first of which the mask belongs to."""

    images: list[Pixels] = field(default_factory=list)
    mask: Pixels | None = None
    mask_is_empty: bool = False
    """Nothing is marked strongly enough."""


def read_inputs(body: ImageInputFields, *, max_pixels: int) -> ImageInputs:
    """Decode everything.

    Args:
        max_pixels: of all images together, so that many small files cannot fill the memory.

    Raises:
        InvalidParameter: a file cannot be used, or the mask has another size than the image.
        UnsupportedFeature: a link or a file id.
    """
    images: list[Pixels] = []
    left = max_pixels
    for number, reference in enumerate(body.images):
        param = "image" if len(body.images) == 1 else f"images[{number}]"
        data = file_of(reference, param)
        image = decode_image(data, param=param, max_pixels=max(1, left), max_side=MAX_INPUT_SIDE)
        left -= image.width * image.height
        images.append(image)
    if not isinstance(body, ImageEditRequest) or body.mask is None:
        return ImageInputs(images)
    mask = decode_mask(
        file_of(body.mask, "mask"),
        body.mask_mode or "auto",
        inverts=bool(body.invert_mask),
        param="mask",
        max_pixels=max_pixels,
        max_side=MAX_INPUT_SIDE,
    )
    _check_same_size(mask, images[0])
    return ImageInputs(images, mask, _is_empty(mask, soft=bool(body.soft_mask)))


def file_of(reference: ImageReference, param: str) -> bytes:
    """What a client sent of an image.

    Raises:
        InvalidParameter: no data URL.
        UnsupportedFeature: a link or a file id.
    """
    if isinstance(reference, UploadedImage):
        return reference.data
    if reference.file_id:
        raise UnsupportedFeature(
            "file_id is not supported by this server; send the image itself", param=param
        )
    url = reference.image_url
    if url is None:
        raise InvalidParameter(f"{param} needs image_url", param=param)
    if not url:
        raise InvalidParameter(f"{param} is empty; send the image as base64", param=param)
    if url[:8].lower().startswith(("http:", "https:")):
        raise UnsupportedFeature(
            "links are not fetched by this server; send the image as a data URL, or as a file of "
            "a multipart form",
            param=param,
        )
    return _data_of(url, param)


def _data_of(url: str, param: str) -> bytes:
    head = _DATA_URL.match(url)
    try:
        encoded = url[head.end() if head else 0 :].encode("ascii").translate(None, _WHITESPACE)
        return binascii.a2b_base64(encoded, strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        raise InvalidParameter(
            f"{param}: the data URL is not valid base64"
            if head
            else f"{param} must be a data URL, data:image/png;base64,..., or its base64 alone",
            param=param,
        ) from None


def _check_same_size(mask: Pixels, image: Pixels) -> None:
    if (mask.width, mask.height) != (image.width, image.height):
        raise InvalidParameter(
            f"the mask has {mask.width}x{mask.height} pixels and the image "
            f"{image.width}x{image.height}; they must have the same size",
            param="mask",
        )


def _is_empty(mask: Pixels, *, soft: bool) -> bool:
    brightest = int(np.frombuffer(mask.data, dtype=np.uint8).max(initial=0))
    return brightest < (1 if soft else 128)
