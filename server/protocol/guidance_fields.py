"""The fields of a request for classifier-free guidance of text."""

from pydantic import BaseModel, Field

from engine.errors import InvalidParameter

MAX_GUIDANCE_SCALE = 20.0


class GuidanceFields(BaseModel):
    """Guidance, which steers away from a negative prompt."""

    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=MAX_GUIDANCE_SCALE,
        description="Classifier-free guidance: multiplies the difference that the prompt makes "
        "to the log-probabilities after negative_prompt. 1, the default, is off. "
        "With guidance each text takes two places.",
    )
    negative_prompt: str | None = Field(
        None,
        min_length=1,
        max_length=1 << 20,
        description="With guidance_scale: what the text should not be like. In chat it replaces "
        "the system messages. Default: only the prompt's last token.",
    )

    @property
    def is_guided(self) -> bool:
        """Whether each text has two rows."""
        return self.guidance_scale not in (None, 1.0)


def check_guidance(request: GuidanceFields, has_beams: bool) -> None:
    """Refuse guidance fields that cannot be combined.

    Raises:
        InvalidParameter: names the field.
    """
    if not request.is_guided:
        if request.negative_prompt is not None:
            raise InvalidParameter(
                "negative_prompt needs a guidance_scale other than 1",
                param="negative_prompt",
            )
    elif has_beams:
        raise InvalidParameter(
            "guidance_scale is for texts that are drawn, and cannot be combined with "
            "use_beam_search; leave one of them out",
            param="guidance_scale",
        )
