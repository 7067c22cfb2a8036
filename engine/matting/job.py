"""Takes one request from its picture to its answer, in stages.

The stages are segment → steer → trimap → solve → foreground → compose; with a trimap from the
client the first is solve.
"""

from collections.abc import Generator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.contract.matte import MattingEvent, MattingOutput, MattingRequest
from engine.contract.pixels import Pixels
from engine.contract.request import FinishReason
from engine.matting.alpha import NOT_CONVERGED, Matte, estimate_alpha
from engine.matting.composition import alpha_levels, covering
from engine.matting.foreground import estimate_foreground
from engine.matting.network import Network
from engine.matting.steering import steer, with_points
from engine.matting.trimap import Trimap, trimap_of_mask
from engine.pictures.alpha import over
from engine.pictures.arrays import Bytes, Floats, array_of, pixels_of, scaled_size
from engine.pictures.resizing import resized

MASK_SIDE = 1024
"""The most pixels of the longer side of the picture from which an automatic trimap is made."""
NO_SUBJECT = (
    "no subject was found, so everything is background; mark it with box or points, or send a "
    "trimap"
)
_PROGRESS = {
    "segment": 0.0,
    "steer": 0.1,
    "trimap": 0.15,
    "solve": 0.2,
    "foreground": 0.75,
    "compose": 0.95,
}
"""The progress when a stage begins, from the times that stages usually take."""


@dataclass(slots=True)
class Job:
    """A request in progress.

    Attributes:
        stage: the current stage of `work`.
        work: a generator to be advanced until it ends with the last event, or closed.
    """

    request: MattingRequest
    network: Network
    stage: str = ""
    num_unknown: int = 0
    work: Generator[None, None, MattingEvent] = field(init=False)
    _found: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.work = self._run()

    @property
    def progress(self) -> float:
        return _PROGRESS.get(self.stage, 0.0)

    def _run(self) -> Generator[None, None, MattingEvent]:
        request = self.request
        picture = array_of(request.image)
        image = picture[..., :3]
        own_alpha = picture[..., 3] if picture.shape[2] == 4 else None
        trimap = yield from self._trimap(image)
        self.num_unknown = trimap.num_unknown
        event = MattingEvent(
            request_id=request.request_id,
            unknown_fraction=trimap.num_unknown / trimap.is_unknown.size,
            finish_reason=FinishReason.STOP,
            warnings=() if trimap.is_subject.any() else (NO_SUBJECT,),
            progress=1.0,
        )
        if request.output is MattingOutput.TRIMAP:
            return replace(event, image=pixels_of(trimap.levels()))
        self.stage = "solve"
        yield
        matte = yield from estimate_alpha(image, trimap)
        event = replace(
            event,
            uncertain_fraction=_uncertain(matte, trimap),
            width=matte.width,
            height=matte.height,
            warnings=(*event.warnings, *([] if matte.is_converged else [NOT_CONVERGED])),
        )
        levels = alpha_levels(matte.alpha, own_alpha)
        if request.output is MattingOutput.ALPHA:
            return replace(event, image=pixels_of(levels))
        self.stage = "foreground"
        yield
        foreground = yield from estimate_foreground(image, matte.alpha)
        self.stage = "compose"
        yield
        return replace(
            event,
            image=self._composed(foreground.colours, levels),
            foreground_width=foreground.width,
            foreground_height=foreground.height,
        )

    def _trimap(self, image: Bytes) -> Generator[None, None, Trimap]:
        request = self.request
        if request.trimap is not None:
            return Trimap.of(array_of(request.trimap))
        self.stage = "segment"
        yield
        mask = self._mask(image)
        if request.box is not None or request.points:
            self.stage = "steer"
            yield
            mask = steer(image, mask, request.box, request.points)
        self.stage = "trimap"
        yield
        height, width = image.shape[:2]
        low = scaled_size(height, width, MASK_SIDE / max(height, width))
        trimap = trimap_of_mask(resized(mask, *low), height, width)
        trimap = with_points(image, trimap, request.points)
        if trimap.is_subject.any():
            return trimap
        nothing = np.zeros((height, width), np.bool_)
        return Trimap(nothing, nothing)

    def _mask(self, image: Bytes) -> Floats:
        """The network's mask; with a box the network sees only the part inside."""
        box = self.request.box
        if box is None:
            return self.network.mask(image)
        left, top, right, bottom = box
        across, down = (right - left) // 8 + 1, (bottom - top) // 8 + 1
        height, width = image.shape[:2]
        rows = slice(max(0, top - down), min(height, bottom + down))
        columns = slice(max(0, left - across), min(width, right + across))
        part = self.network.mask(np.ascontiguousarray(image[rows, columns]))
        # At this size the mask of the whole picture is detailed enough.
        scale = min(1.0, MASK_SIDE / max(height, width))
        low = scaled_size(height, width, scale)
        mask = np.zeros(low, np.float32)
        place = tuple(
            slice(int(side.start * scale), max(int(side.start * scale) + 1, int(side.stop * scale)))
            for side in (rows, columns)
        )
        target = mask[place]
        target[...] = resized(part, *target.shape)
        return mask

    def _composed(self, colours: Bytes, levels: Bytes) -> Pixels:
        request = self.request
        if request.output is MattingOutput.CUTOUT:
            return pixels_of(np.dstack([colours, levels]))
        background: Any = request.colour
        if request.background is not None:
            background = covering(array_of(request.background), *levels.shape)
        return pixels_of(over(colours, levels, background))


def _uncertain(matte: Matte, trimap: Trimap) -> float:
    """The share of the open pixels whose alpha is neither subject nor background."""
    if not trimap.num_unknown:
        return 0.0
    alpha = matte.alpha[trimap.is_unknown]
    return float(np.count_nonzero((alpha > 0.1) & (alpha < 0.9))) / trimap.num_unknown
