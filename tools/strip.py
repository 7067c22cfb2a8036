"""Strips of pictures for the documentation, and pictures as a server's API holds them."""

import base64
import io
from collections.abc import Sequence

from PIL import Image


def strip(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """The pictures side by side, `gap` pixels of white apart."""
    width = sum(picture.width + gap for picture in pictures) - gap
    sheet = Image.new("RGB", (width, max(picture.height for picture in pictures)), "white")
    left = 0
    for picture in pictures:
        sheet.paste(picture, (left, 0))
        left += picture.width + gap
    return sheet


def encoded(image: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def decoded(b64: str) -> Image.Image:
    """The picture of an answer's base64."""
    return Image.open(io.BytesIO(base64.b64decode(b64))).convert("RGB")
