"""The fields that all image routes have: how to write the result, and what has no effect."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.common import ModelRequest

MAX_PROMPT_CHARS = 4000
MAX_STEPS = 1000

NO_EFFECT_FIELDS: Mapping[str, str] = {
    "user": "names the end user to OpenAI's abuse monitoring",
    "safety_identifier": "names the end user to OpenAI's abuse monitoring",
    "moderation": "how strictly OpenAI filters; nothing is filtered here",
    "style": "a hint to DALL-E 3's prompt writer",
    "input_fidelity": "how closely OpenAI's models keep to the input; see strength",
    "complexity": "how long OpenAI's models plan an image",
    "metadata": "labels a stored answer",
    "store": "keeps the answer in OpenAI's account",
}
"""OpenAI fields that are accepted and, by their meaning, change no picture of this server."""

OutputFormat = Literal["png", "jpeg", "webp"]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARS)]


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

    _no_effect: ClassVar[Mapping[str, str]] = NO_EFFECT_FIELDS

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
