"""Input images and canvas sizes in the bodies of the image routes."""

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, Field, model_validator

from engine.errors import InvalidParameter
from server.http.form_values import read_fields
from server.http.multipart import Form, Part
from server.protocol.common import WireModel

MAX_OUTPAINT_PIXELS = 4096

OutpaintPixels = Annotated[int, Field(ge=0, le=MAX_OUTPAINT_PIXELS)]


class ImageReference(WireModel):
    """An input image in a JSON body. A string stands for an object with that `image_url`."""

    image_url: str | None = Field(
        None,
        description="A data URL, `data:image/png;base64,...`, or only its base64; the url of an "
        "image that this server made; or a link to a host that the operator allows.",
    )
    file_id: str | None = Field(
        None, max_length=256, description="Not supported: there is no file store here."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_string(cls, data: Any) -> Any:
        return {"image_url": data} if isinstance(data, str) else data


class UploadedImage(ImageReference):
    """An input image that came as a part of a form. It is never made from JSON."""

    data: bytes = Field(exclude=True)


def uploaded(part: Part) -> UploadedImage:
    """The file of a part, as an image. The file is moved: its request may wait for long, and one
    copy in memory is enough.

    Raises:
        InvalidParameter: the part is text, not a file that was sent without its name.
    """
    if not part.is_file and part.data.isascii():
        raise InvalidParameter(
            f"{part.name} is text; send it as a file of the form (in curl: -F "
            f"{part.name}=@in.png), or as a data URL in a JSON body",
            param=part.name,
        )
    data, part.data = bytes(part.data), bytearray()
    return UploadedImage(image_url=None, file_id=None, data=data)


def read_image_form(form: Form, model: type[BaseModel], files: Sequence[str]) -> dict[str, Any]:
    """A form as the object that a JSON body of `model` would be; an empty field is null.

    Args:
        files: names of the fields that are images. The first one is required.

    Raises:
        InvalidParameter: names the field and the mistake.
    """
    values = read_fields(form, model, skip=files)
    for name in values.keys() & model.model_fields.keys():
        if values[name] == "":
            values[name] = None
    for name in files:
        parts = form.get(name, [])
        if len(parts) > 1:
            raise InvalidParameter(f"{name} is given more than once; send it once", param=name)
        if not parts or (not parts[0].data and not parts[0].has_file_name):
            continue
        if not parts[0].data:
            raise InvalidParameter(
                f"{name} is an empty file (0 bytes); send its content, or leave the field out",
                param=name,
            )
        values[name] = uploaded(parts[0])
    if files[0] not in values:
        raise InvalidParameter(f"{files[0]} is required, as a file of the form", param=files[0])
    return values


_FORM_TEXT = {"type": "string", "example": ""}
"""A field that is left out of a form. Without an example /docs would send the word "string"."""


def image_form_body(model: type[BaseModel], files: Sequence[str]) -> dict[str, Any]:
    """OpenAPI's description of such a form: the files, and other fields as text."""
    properties: dict[str, Any] = dict.fromkeys(model.model_fields, _FORM_TEXT)
    properties |= {name: {"type": "string", "format": "binary"} for name in files}
    schema = {"type": "object", "properties": properties, "required": [files[0]]}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}


class PictureBody(BaseModel):
    """A body with pictures: JSON, or a form in which they are files."""

    picture_fields: ClassVar[tuple[str, ...]]
    """Names of the fields that are pictures. The first one is required."""

    @model_validator(mode="before")
    @classmethod
    def _read_body(cls, data: Any) -> Any:
        return read_image_form(data, cls, cls.picture_fields) if isinstance(data, Form) else data

    def drop_files(self) -> None:
        """Drop the files, which would stay in memory as long as the request."""
        for name in self.picture_fields:
            reference = getattr(self, name)
            if isinstance(reference, UploadedImage):
                reference.data = b""
            elif reference is not None:
                reference.image_url = None

    @classmethod
    def form_body(cls) -> dict[str, Any]:
        """OpenAPI's description of the body as a form."""
        return image_form_body(cls, cls.picture_fields)


class OutpaintFields(WireModel):
    """Pixels by which the canvas grows on each side. Misspelt sides are refused, because they would
    silently not grow."""

    left: OutpaintPixels | None = None
    right: OutpaintPixels | None = None
    top: OutpaintPixels | None = None
    bottom: OutpaintPixels | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_sides(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.keys() - cls.model_fields.keys():
            raise InvalidParameter(
                f"outpaint has only the sides {', '.join(cls.model_fields)}; leave out all others",
                param="outpaint",
            )
        return data
