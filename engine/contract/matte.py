"""Requests to remove backgrounds, and their answers.

A picture is `I = alpha F + (1 - alpha) B` in every pixel. A matte is alpha; a cut-out has the
colours F of the subject.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from engine.contract.pixels import Pixels
from engine.contract.request import Event, Info, Request, TurnStats

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are the first pixels outside."""


class MattingOutput(StrEnum):
    """What to make from alpha and the foreground's colours."""

    CUTOUT = "cutout"
    """The subject alone, as its colours and straight alpha."""
    ALPHA = "alpha"
    TRIMAP = "trimap"
    """The trimap that was used: 0 background, 128 unknown, 255 subject."""
    COMPOSITE = "composite"
    """The subject in front of a colour or another picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A pixel that the client marks as subject or background."""

    x: int
    y: int
    is_subject: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingRequest(Request["MattingEvent"]):
    """A picture whose background is to be removed."""

    image: Pixels
    """The picture, RGB or RGBA. The result's alpha is at most the picture's own."""
    trimap: Pixels | None = None
    """One channel of the image's size: from 230 up subject, up to 25 background, else unknown.
    None: the network finds the subject."""
    box: Box | None = None
    """A box around the subject. Like `points` it is used only without a trimap."""
    points: list[Point] = field(default_factory=list)
    output: MattingOutput = MattingOutput.CUTOUT
    colour: tuple[int, int, int] = (255, 255, 255)
    """The background colour of COMPOSITE without a background picture."""
    background: Pixels | None = None
    """The background picture of COMPOSITE: scaled to cover the image, and cropped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingEvent(Event):
    """What a step did: the request's progress or, with finish reason `stop`, its result."""

    stage: str = ""
    """The current stage, such as `solve`."""
    progress: float = 0.0
    """The progress from 0 to 1."""
    image: Pixels | None = None
    """The result: RGBA for a cut-out, RGB for a composite, otherwise one channel."""
    unknown_fraction: float = 0.0
    """The share of the picture's pixels that the trimap does not decide."""
    uncertain_fraction: float = 0.0
    """The share of these pixels with an alpha from 0.1 to 0.9, neither subject nor background."""
    width: int = 0
    """The width at which alpha was solved; smaller than the image's if that is large."""
    height: int = 0
    foreground_width: int = 0
    """The width at which the foreground's colours were estimated."""
    foreground_height: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingStats(TurnStats):
    """Statistics of a matting engine, with the numbers of pictures in progress and waiting."""

    num_images: int = 0
    """The number of finished pictures."""
    num_pixels: int = 0
    """The number of pixels of the finished pictures."""
    num_unknown_pixels: int = 0
    """The number of pixels that alpha was solved for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingModelInfo(Info):
    """The facts about a model that removes backgrounds; `architecture` is its network's class."""

    side: int
    """The side in pixels of the network's input."""

    @property
    def log_fields(self) -> dict[str, object]:
        return {"family": self.architecture, "side": self.side}
