"""Body and answer of `POST /v1/images/matte`, and the card of a model for it.

An explicit null is the default. What needs the decoded image, as the marks do, is checked in the
engine.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from engine.errors import InvalidParameter
from engine.matting_types import MattingMethod
from server.http.multipart import Form
from server.protocol.common import Priority, WireModel
from server.protocol.file_fields import FileFields
from server.protocol.image_answers import OutputFormatName
from server.protocol.image_inputs import ImageReference, image_form_body, read_image_form
from server.protocol.images import NO_EFFECT_FIELDS

MAX_POINTS = 64
MAX_COORDINATE = 1 << 20

_FILES = ("image", "trimap", "background_image")
_COLOUR = re.compile(r"#(?:[0-9a-fA-F]{3}|[0-9a-fA-F]{6})")

OutputName = Literal["cutout", "alpha", "trimap", "composite"]
MethodName = Literal["closed_form", "knn", "learning_based"]
Coordinate = Annotated[int, Field(ge=0, le=MAX_COORDINATE)]


class PointFields(WireModel):
    """A pixel, counted from the upper left, and whose it is."""

    x: Coordinate
    y: Coordinate
    label: Literal[0, 1] = Field(1, description="1: of the subject; 0: of the background.")


class MatteRequest(FileFields):
    """Take a picture's background away."""

    image: ImageReference = Field(
        description="The picture: PNG, JPEG or WebP. In a form it is a file."
    )
    trimap: ImageReference | None = Field(
        None,
        description="Of the image's size: white where the subject is, black where the background "
        "is, grey where alpha is to be found. Without one a network finds the subject.",
    )
    box: list[Coordinate] | None = Field(
        None,
        min_length=4,
        max_length=4,
        description="The subject is inside: left, top, right, bottom in pixels.",
    )
    points: list[PointFields] | None = Field(
        None, max_length=MAX_POINTS, description="Pixels of the subject, or of the background."
    )
    method: MethodName | None = Field(
        None, description="How alpha is found where it is open. Default closed_form."
    )
    output: OutputName | None = Field(
        None,
        description="cutout: the subject with alpha; alpha: that alone, as grey; trimap: the one "
        "that was used; composite: the subject over background_color or background_image, which is "
        "the default where one of them is given. Default cutout.",
    )
    background_color: str | None = Field(
        None,
        description="Of a composite, and of a cut-out as jpeg: #rgb or #rrggbb. Default #ffffff.",
        json_schema_extra={"pattern": f"^{_COLOUR.pattern}$"},
    )
    background_image: ImageReference | None = Field(
        None, description="Of a composite; scaled to cover the image, and cut."
    )
    priority: Priority = None

    _no_effect: ClassVar[Mapping[str, str]] = NO_EFFECT_FIELDS
    _unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "stream": (False,),
        "mask": (),
        "n": (1,),
    }

    @model_validator(mode="before")
    @classmethod
    def _read_body(cls, data: Any) -> Any:
        return read_image_form(data, cls, _FILES) if isinstance(data, Form) else data

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.background_color is not None and not _COLOUR.fullmatch(self.background_color):
            raise InvalidParameter(
                "background_color must be #rgb or #rrggbb, such as #ffffff",
                param="background_color",
            )
        if self.trimap is not None:
            for name in ("box", "points"):
                if getattr(self, name):
                    raise InvalidParameter(
                        f"{name} says where the subject is, and so does the trimap; send one of "
                        "them",
                        param=name,
                    )
        if self.background_color is not None and self.background_image is not None:
            raise InvalidParameter(
                "background_color and background_image exclude each other; send one of them",
                param="background_color",
            )
        if self.background_image is not None and self.result != "composite":
            raise InvalidParameter(
                f"background_image cannot act with output {self.output}; leave one of them out",
                param="background_image",
            )
        return self

    @property
    def result(self) -> OutputName:
        """The output that is meant."""
        if self.output is not None:
            return self.output
        if self.background_image is not None:
            return "composite"
        # A jpeg has its colour anyway.
        is_over_colour = self.background_color is not None and self.output_format != "jpeg"
        return "composite" if is_over_colour else "cutout"

    @property
    def colour(self) -> tuple[int, int, int]:
        """`background_color` as numbers."""
        digits = (self.background_color or "#ffffff")[1:]
        if len(digits) == 3:
            digits = "".join(2 * digit for digit in digits)
        return int(digits[:2], 16), int(digits[2:4], 16), int(digits[4:], 16)


@dataclass(slots=True, kw_only=True)
class MatteData:
    """The result: `b64_json` or `url`."""

    b64_json: str | None = None
    url: str | None = None


@dataclass(slots=True, kw_only=True)
class MatteAnswer:
    """In the shape of OpenAI's image answers, whose `data` holds one here."""

    created: int
    data: list[MatteData]
    background: Literal["transparent", "opaque"]
    output_format: OutputFormatName
    size: str
    id: str
    model: str
    output: OutputName
    source: Literal["trimap", "network"]
    """Who said where the subject is."""
    method: MattingMethod
    unknown_fraction: float
    """Share of the picture's pixels that the trimap left open."""
    uncertain_fraction: float
    """Share of these whose alpha came out between 0.1 and 0.9: hair, glass, blur, or a subject that
    looks like its background. High: look at the result."""
    solved_size: str | None
    """Of the picture that alpha was solved at; null for a trimap."""
    foreground_size: str | None
    """Of the one that the subject's colours were estimated at; null where none were."""
    warnings: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class MattingModelCard:
    """A served model that takes backgrounds away."""

    id: str
    object: Literal["model"] = "model"
    created: int
    root: str
    owned_by: str = "tandem"
    parent: str | None = None
    architecture: str
    side: int
    """Pixels a side of what its network sees."""
    methods: list[MattingMethod]


def form_body() -> dict[str, Any]:
    """OpenAPI's description of the body as a form."""
    return image_form_body(MatteRequest, _FILES)
