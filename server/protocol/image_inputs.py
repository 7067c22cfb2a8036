"""Input images and canvas sizes within the bodies of the image routes."""

from typing import Annotated

from pydantic import Field

from server.multipart import Part
from server.protocol.common import WireModel

MAX_OUTPAINT_PIXELS = 4096

OutpaintPixels = Annotated[int, Field(ge=0, le=MAX_OUTPAINT_PIXELS)]


class ImageReference(WireModel):
    """An input image in a JSON body."""

    image_url: str | None = Field(
        None, description="A data URL: `data:image/png;base64,...`. Links are not fetched."
    )
    file_id: str | None = Field(
        None, max_length=256, description="Not supported: there is no file store here."
    )


class UploadedImage(ImageReference):
    """An input image that came as a part of a form. Never made from JSON."""

    data: bytes = Field(exclude=True)


def uploaded(part: Part) -> UploadedImage:
    """The file moves over: its request may wait for long, and once is enough in memory."""
    data, part.data = bytes(part.data), bytearray()
    return UploadedImage(image_url=None, file_id=None, data=data)


class OutpaintFields(WireModel):
    """Pixels by which the canvas grows on each side."""

    left: OutpaintPixels | None = None
    right: OutpaintPixels | None = None
    top: OutpaintPixels | None = None
    bottom: OutpaintPixels | None = None
