"""Body and answer of `POST /v1/images/matte`, and the card of a model for it.

An explicit null means the default. Checks that need the decoded image, such as those of marks, are
in the engine.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from engine.errors import InvalidParameter
from server.protocol.common import Priority, WireModel
from server.protocol.file_fields import FileFields, OutputFormat
from server.protocol.image_inputs import ImageReference, PictureBody
from server.protocol.models import PictureModelCard
from server.protocol.whole_numbers import NOT_A_FLAG

MAX_POINTS = 64
MAX_COORDINATE = 1 << 20

_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")

MethodName = Literal["closed_form"]
OutputName = Literal["cutout", "alpha", "trimap", "composite"]
Coordinate = Annotated[int, Field(ge=0, le=MAX_COORDINATE)]


def _still_there(method: Any) -> Any:
    """Refuse the methods that earlier versions had."""
    if method in ("knn", "learning_based"):
        raise InvalidParameter(
            f"method {method} was removed; alpha is computed with closed_form, so leave method out "
            "or send closed_form",
            param="method",
        )
    return method


class PointFields(WireModel):
    """A pixel, counted from the upper left, and whether it belongs to the subject."""

    x: Coordinate
    y: Coordinate
    label: Annotated[Literal[0, 1], NOT_A_FLAG] = Field(
        1, description="1: a pixel of the subject; 0: of the background."
    )


class MatteFields(FileFields):
    """How to remove a picture's background."""

    box: list[Coordinate] | None = Field(
        None,
        min_length=4,
        max_length=4,
        description="A box around the subject: left, top, right, bottom in pixels.",
    )
    points: list[PointFields] | None = Field(
        None, max_length=MAX_POINTS, description="Pixels of the subject, or of the background."
    )
    method: Annotated[MethodName | None, BeforeValidator(_still_there)] = Field(
        None, description="How alpha is computed where it is unknown: always closed_form."
    )
    output: OutputName | None = Field(
        None,
        description="cutout: the subject with alpha; alpha: only alpha, as grey; trimap: the "
        "trimap that was used; composite: the subject over background_color or "
        "background_image, which is the default if one of them is given. Otherwise "
        "the default is cutout.",
    )
    background_color: str | None = Field(
        None,
        description="Background of a composite, and of a cut-out as jpeg: #rgb or #rrggbb. "
        "Default #ffffff.",
        json_schema_extra={"pattern": f"^{_COLOUR.pattern}$"},
    )

    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "stream": (False,),
        "mask": (),
        "n": (1,),
    }

    @model_validator(mode="after")
    def _check_colour(self) -> Self:
        if self.background_color is not None and not _COLOUR.fullmatch(self.background_color):
            raise InvalidParameter(
                "background_color must be #rgb or #rrggbb, such as #ffffff",
                param="background_color",
            )
        return self

    @property
    def result(self) -> OutputName:
        """The requested output, or the default."""
        if self.output is not None:
            return self.output
        # A jpeg always has a background colour.
        is_over_colour = self.background_color is not None and self.output_format != "jpeg"
        return "composite" if is_over_colour else "cutout"

    @property
    def colour(self) -> tuple[int, int, int]:
        """`background_color` as three numbers."""
        digits = (self.background_color or "#ffffff")[1:]
        if len(digits) == 3:
            digits = "".join(2 * digit for digit in digits)
        return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


class MatteRequest(PictureBody, MatteFields):
    """Remove a picture's background."""

    picture_fields: ClassVar[tuple[str, ...]] = ("image", "trimap", "background_image")

    image: ImageReference = Field(
        description="The picture: PNG, JPEG or WebP. In a form it is a file."
    )
    trimap: ImageReference | None = Field(
        None,
        description="An image of the same size: white where the subject is, black where the "
        "background is, grey where alpha is unknown. Without one, a network finds "
        "the subject.",
    )
    background_image: ImageReference | None = Field(
        None, description="Background of a composite; it is scaled to cover the image, and cut."
    )
    priority: Priority = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.trimap is not None:
            for name in ("box", "points"):
                if getattr(self, name):
                    raise InvalidParameter(
                        f"{name} and trimap both say where the subject is; send one of them",
                        param=name,
                    )
        if self.background_color is not None and self.background_image is not None:
            raise InvalidParameter(
                "background_color and background_image cannot be combined; send one of them",
                param="background_color",
            )
        if self.background_image is not None and self.result != "composite":
            raise InvalidParameter(
                f"background_image has no effect with output {self.output}; leave one of them out",
                param="background_image",
            )
        return self

    @property
    def result(self) -> OutputName:
        is_over_image = self.output is None and self.background_image is not None
        return "composite" if is_over_image else super().result


@dataclass(slots=True, kw_only=True)
class MatteData:
    """The result: `b64_json` or `url`."""

    b64_json: str | None = None
    url: str | None = None


@dataclass(slots=True, kw_only=True)
class MatteAnswer:
    """The answer in the form of OpenAI's image answers; its `data` holds one result."""

    created: int
    data: list[MatteData]
    background: Literal["transparent", "opaque"]
    output_format: OutputFormat
    size: str
    id: str
    model: str
    output: OutputName
    source: Literal["trimap", "network"]
    """Whether the network or the trimap found the subject."""
    method: MethodName = "closed_form"
    unknown_fraction: float
    """Share of the picture's pixels that the trimap left unknown."""
    uncertain_fraction: float
    """Share of the unknown pixels whose alpha is between 0.1 and 0.9: hair, glass, blur, or a
    subject that looks like its background. If it is high, check the result."""
    solved_size: str | None
    """Size of the picture at which alpha was computed; null for a trimap."""
    foreground_size: str | None
    """Size of the picture at which the subject's colours were estimated; null if they were not."""
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class MattingModelCard(PictureModelCard):
    """A served model that removes backgrounds."""

    side: int
    """Side in pixels of the picture that its network takes."""
    methods: tuple[MethodName, ...] = ("closed_form",)
