"""The fields of all image routes that say how to write the result."""

from typing import Literal, Self

from pydantic import Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.common import ModelRequest

OutputFormat = Literal["png", "jpeg", "webp"]


class FileFields(ModelRequest):
    """A body whose answer is an image file."""

    output_format: OutputFormat | None = Field(None, description="Default png.")
    output_compression: int | None = Field(
        None, ge=0, le=100, description="Quality of jpeg and webp, in percent. Default 100."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="url stores the image on this server for a while; previews in a stream are "
        "always b64_json. Default b64_json.",
    )

    @model_validator(mode="after")
    def _check_compression(self) -> Self:
        if self.output_compression not in (None, 100) and self.output_format in (None, "png"):
            raise InvalidParameter(
                "png is lossless; output_compression below 100 needs output_format jpeg or webp",
                param="output_compression",
            )
        return self

    @property
    def file_format(self) -> OutputFormat:
        """The requested format, or the default."""
        return self.output_format or "png"

    @property
    def file_quality(self) -> int:
        """The requested quality in percent, or the default."""
        return 100 if self.output_compression is None else self.output_compression
