"""The fields of a request for classifier-free guidance of text."""

from pydantic import BaseModel, Field

from engine.errors import InvalidParameter

MAX_GUIDANCE_SCALE = 20.0


class GuidanceFields(BaseModel):
    """Away from a negative prompt."""

    guidance_scale: float | None = Field(
        None,
        ge=0,
        le=MAX_GUIDANCE_SCALE,
        description="Classifier-free guidance: so many times the difference that the prompt makes "
        "to the log-probabilities behind negative_prompt. 1, the default, is off. Each text then "
        "takes two places.",
    )
    negative_prompt: str | None = Field(
        None,
        min_length=1,
        max_length=1 << 20,
        description="With guidance_scale: what the text shall not be like. In chat it takes the "
        "place of system messages. Default: the prompt's last token alone.",
    )

    @property
    def is_guided(self) -> bool:
        """Whether there are two rows per text."""
        return self.guidance_scale not in (None, 1.0)


def check_guidance(request: GuidanceFields, has_beams: bool) -> None:
    """
    Raises:
        InvalidParameter: names the field.
    """
    if not request.is_guided:
        if request.negative_prompt is not None:
            raise InvalidParameter(
                "negative_prompt is only allowed with a guidance_scale other than 1",
                param="negative_prompt",
            )
    elif has_beams:
        raise InvalidParameter(
            "guidance_scale is for texts that are drawn; it cannot be combined with "
            "use_beam_search",
            param="guidance_scale",
        )
