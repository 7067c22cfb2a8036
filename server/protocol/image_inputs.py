"""Input images and canvas sizes within the bodies of the image routes."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from engine.errors import InvalidParameter
from server.http.multipart import Part
from server.protocol.common import WireModel

MAX_OUTPAINT_PIXELS = 4096

OutpaintPixels = Annotated[int, Field(ge=0, le=MAX_OUTPAINT_PIXELS)]


class ImageReference(WireModel):
    """An input image in a JSON body. A string stands for an object with that `image_url`."""

    image_url: str | None = Field(
        None,
        description="A data URL, `data:image/png;base64,...`, or its base64 alone. Links are not "
        "fetched.",
    )
    file_id: str | None = Field(
        None, max_length=256, description="Not supported: there is no file store here."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_string(cls, data: Any) -> Any:
        return {"image_url": data} if isinstance(data, str) else data


class UploadedImage(ImageReference):
    """An input image that came as a part of a form. Never made from JSON."""

    data: bytes = Field(exclude=True)


def uploaded(part: Part) -> UploadedImage:
    """The file moves over: its request may wait for long, and once is enough in memory.

    Raises:
        InvalidParameter: the part is text and not a file sent without its name.
    """
    if not part.is_file and part.data.isascii():
        raise InvalidParameter(
            f"{part.name} is text and must be a file of the form (in curl: -F {part.name}=@in.png);"
            " data URLs go into a JSON body",
            param=part.name,
        )
    data, part.data = bytes(part.data), bytearray()
    return UploadedImage(image_url=None, file_id=None, data=data)


class OutpaintFields(WireModel):
    """Pixels by which the canvas grows on each side. A misspelt side would silently not grow."""

    left: OutpaintPixels | None = None
    right: OutpaintPixels | None = None
    top: OutpaintPixels | None = None
    bottom: OutpaintPixels | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_sides(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.keys() - cls.model_fields.keys():
            raise InvalidParameter(
                f"outpaint has the sides {', '.join(cls.model_fields)} and no others",
                param="outpaint",
            )
        return data
