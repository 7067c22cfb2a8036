"""The second pass in the body of a request to draw."""

from typing import Literal, Self

from pydantic import Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.common import WireModel

MAX_SCALE = 16.0

UpscalerName = Literal[
    "latent",
    "latent-antialiased",
    "latent-bicubic",
    "latent-bicubic-antialiased",
    "latent-nearest",
    "latent-nearest-exact",
    "lanczos",
    "nearest",
]


class HiresFields(WireModel):
    """How a drawn image is enlarged and partly redrawn. Fields that are left out are as in the
    first pass, unless they have a default. Misspelt fields are refused, because they would silently
    have no effect."""

    scale: float | None = Field(
        None,
        ge=1,
        le=MAX_SCALE,
        description="How many times as large each side becomes, rounded down to the model's "
        "grid. Default 2.",
    )
    size: str | None = Field(
        None,
        max_length=32,
        description="`WIDTHxHEIGHT` in pixels, in place of scale. If its shape differs from the "
        "first pass's, the middle is kept.",
        json_schema_extra={"pattern": "^[0-9]{1,6}[xX][0-9]{1,6}$"},
    )
    upscaler: UpscalerName | None = Field(
        None,
        description="latent and its variants enlarge the latents, which needs a strength of "
        "about 0.5 or more; lanczos and nearest enlarge the decoded picture, which "
        "is then encoded again. Default latent.",
    )
    strength: float | None = Field(
        None, gt=0, le=1, description="Share of the steps that is run, as for edits. Default 0.7."
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=1000, description="Number of steps, of which strength is the share."
    )
    guidance_scale: float | None = Field(None, ge=0, le=100, description="1 is off.")
    scheduler: str | None = Field(
        None, max_length=64, description="Noise schedule, one of the model's."
    )
    prompt: str | None = Field(
        None, min_length=1, max_length=4000, description="What to redraw it as."
    )
    negative_prompt: str | None = Field(
        None, max_length=4000, description="What to steer away from."
    )

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.model_extra:
            raise InvalidParameter(
                f"hires has no field {next(iter(self.model_extra))[:80]!r}; its fields are "
                f"{', '.join(type(self).model_fields)}",
                param="hires",
            )
        if self.scale is not None and self.size is not None:
            raise InvalidParameter(
                "hires takes either scale or size; leave one of them out", param="hires"
            )
        return self
