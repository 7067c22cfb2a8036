"""What is asked of a model that takes backgrounds away, and what comes back; `engine.types` for
mattes.

A picture is `I = alpha F + (1 - alpha) B` in every pixel. A matte is alpha; a cut-out has the
colours F of the subject alone.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from engine.image_types import Pixels
from engine.types import Event, Info, Request, Stats

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels; right and bottom are the first that are outside."""


class MattingMethod(StrEnum):
    """How alpha is estimated where the trimap leaves it open; see `engine.matting.systems`."""

    CLOSED_FORM = "closed_form"
    KNN = "knn"
    LEARNING_BASED = "learning_based"


class MattingOutput(StrEnum):
    """What is made of alpha and the foreground's colours."""

    CUTOUT = "cutout"
    """The subject alone: its colours, and straight alpha."""
    ALPHA = "alpha"
    TRIMAP = "trimap"
    """The one that was used: 0 background, 128 unknown, 255 subject."""
    COMPOSITE = "composite"
    """The subject over a colour or another picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A pixel of which somebody says whether it belongs to the subject."""

    x: int
    y: int
    is_subject: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingRequest(Request["MattingEvent"]):
    """One picture whose background goes."""

    image: Pixels
    """RGB or RGBA. Alpha that it has already is kept: the result's is at most that."""
    trimap: Pixels | None = None
    """One channel, of the image's size: from 230 up subject, down from 25 background, else unknown.
    None: the network finds the subject."""
    box: Box | None = None
    """The subject is inside. Without a trimap only, as `points`."""
    points: list[Point] = field(default_factory=list)
    method: MattingMethod = MattingMethod.CLOSED_FORM
    output: MattingOutput = MattingOutput.CUTOUT
    colour: tuple[int, int, int] = (255, 255, 255)
    """Of COMPOSITE without a background."""
    background: Pixels | None = None
    """Of COMPOSITE: scaled to cover the image, and cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingEvent(Event):
    """What a step brought: how far the request is, or with finish reason `stop` the result."""

    stage: str = ""
    """What is done now, such as `solve`."""
    progress: float = 0.0
    """0 to 1."""
    image: Pixels | None = None
    """RGBA of a cut-out, RGB of a composition, else one channel."""
    unknown_fraction: float = 0.0
    """Share of the picture's pixels that the trimap left open."""
    uncertain_fraction: float = 0.0
    """Share of these whose alpha came out between 0.1 and 0.9: neither subject nor background."""
    width: int = 0
    """Of the picture that alpha was solved at; smaller than the image where that is large."""
    height: int = 0
    foreground_width: int = 0
    """Of the one that the foreground's colours were estimated at."""
    foreground_height: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingStats(Stats):
    """Those of a matting engine: pictures in work, and pictures that wait."""

    step_time_s: float = 0.0
    """Of the newest step."""
    num_images: int = 0
    """Finished."""
    num_pixels: int = 0
    """Of these."""
    num_unknown_pixels: int = 0
    """That alpha was solved for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MattingModelInfo(Info):
    """Of a model that takes backgrounds away; `architecture` is the class of its network."""

    side: int
    """Pixels a side of what the network sees."""
    methods: tuple[MattingMethod, ...] = tuple(MattingMethod)

    @property
    def log_fields(self) -> dict[str, object]:
        return {"family": self.architecture, "side": self.side}
