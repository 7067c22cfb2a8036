"""Writes the image files that clients download. Pure functions for a thread: they take as long as
their codec."""

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from engine.contract.pixels import Pixels
from engine.errors import InvalidParameter
from server.images.metadata import exif_bytes, png_chunks
from server.protocol.file_fields import OutputFormat

Colour = tuple[int, int, int]

_WHITE: Colour = (255, 255, 255)
_MAX_SIDE = {"webp": 16383, "jpeg": 65500}
"""The most pixels per side that an encoder takes."""
_FULL_CHROMA_FROM = 90
"""JPEG quality from which on colour is not subsampled."""


def encode_image(
    pixels: Pixels,
    format: OutputFormat,
    compression: int = 100,
    metadata: Mapping[str, Any] | None = None,
    *,
    background: Colour = _WHITE,
) -> bytes:
    """A picture as a file.

    Args:
        pixels: grey, RGB or RGBA. JPEG has no alpha: RGBA is laid over `background`.
        compression: OpenAI's `output_compression`, in effect the quality: 0 is the smallest file,
            100 the best picture. WebP is lossless at 100; PNG always is and ignores it.
        metadata: how the picture was made, by the names of the HTTP API. PNG gets two text chunks:
            `parameters` in A1111's notation, and `tandem` with the JSON. JPEG and WebP get the EXIF
            fields UserComment and ImageDescription, unless these exceed EXIF's 64 KiB.

    Raises:
        InvalidParameter: the format cannot hold a picture of this size.
    """
    check_sides(format, pixels.width, pixels.height)
    image = _image_of(pixels)
    options: dict[str, Any] = {}
    if format == "png":
        options = {"pnginfo": png_chunks(metadata) if metadata else None}
    elif metadata and (exif := exif_bytes(metadata)) is not None:
        options = {"exif": exif}
    if format == "jpeg":
        image = _over(image, background)
        options |= {"quality": max(1, compression)}
        options |= {"subsampling": 0} if compression >= _FULL_CHROMA_FROM else {}
    elif format == "webp":
        options |= {"quality": compression, "lossless": compression == 100, "exact": True}
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def check_sides(format: OutputFormat, width: int, height: int) -> None:
    """Check that the format can hold a picture of this size.

    Raises:
        InvalidParameter: the format cannot hold a picture of this size.
    """
    limit = _MAX_SIDE.get(format)
    if limit is not None and max(width, height) > limit:
        raise InvalidParameter(
            f"the picture is {width}x{height}, and {format} holds at most {limit} pixels a side; "
            "use png",
            param="output_format",
        )


def _image_of(pixels: Pixels) -> Image.Image:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.channels]
    return Image.frombytes(mode, (pixels.width, pixels.height), pixels.data)


def _over(image: Image.Image, background: Colour) -> Image.Image:
    if image.mode != "RGBA":
        return image
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def base64_text(data: bytes) -> str:
    """A file as JSON holds it."""
    return base64.b64encode(data).decode("ascii")
