"""`UpscalingWork` enlarges images tile by tile.

A step runs the network over tiles of one size, one of each request in turn, as many as its budget
of arithmetic allows. Rows are sent as soon as they are finished.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.contract.enlarge import UpscaleEvent, UpscaleRequest, UpscaleStats
from engine.contract.request import FinishReason
from engine.errors import InvalidParameter
from engine.runtime.fault import Unusable
from engine.turns.engine import TurnLimits, TurnsEngine
from engine.turns.queue import WaitingQueue
from engine.turns.work import Pending, Turn, Work
from engine.upscaling.network import NetworkFacts
from engine.upscaling.picture import Picture, rim_of
from engine.upscaling.runner import TileRunner

_SMALL_SHARE = 16
"""A result that takes at most this part of the memory begins at once, however many large ones
wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalingLimits(TurnLimits):
    """The limits of an upscaling engine."""

    max_step_flops: float
    """The most arithmetic of a step, unless a single tile has more."""
    max_num_rows: int
    """The most tiles of a step; tiles with alpha count twice."""
    max_work_bytes: int
    """The most memory of unfinished results, unless a single one needs more."""
    max_num_images: int
    """The most images in progress at once."""
    max_tile: int


@dataclass(slots=True, eq=False, kw_only=True)
class PendingImage(Pending):
    """A request with tiles left. Each turn computes one tile."""

    request: UpscaleRequest
    picture: Picture
    num_previews: int = 0
    """The number of previews sent."""

    def is_preview_due(self) -> bool:
        """Whether a preview should follow the tile that was added last. Previews are spread evenly
        over the tiles before the last one."""
        picture, shares = self.picture, self.request.num_previews + 1
        passed = shares * picture.num_laid // picture.num_tiles
        before = shares * (picture.num_laid - 1) // picture.num_tiles
        return before < passed < shares


UpscalingEngine = TurnsEngine[UpscaleRequest, UpscaleEvent, UpscaleStats]
UpscalingQueue = WaitingQueue[PendingImage]
Tile = Turn[PendingImage]


class UpscalingWork(Work[UpscaleRequest, PendingImage, Tensor, UpscaleEvent, UpscaleStats]):
    """The work of an `UpscalingEngine`."""

    stats_type = UpscaleStats
    items = "images"

    def __init__(self, runner: TileRunner, facts: NetworkFacts, limits: UpscalingLimits) -> None:
        self._runner = runner
        self._facts = facts
        self._limits = limits

    def check(self, request: UpscaleRequest) -> None:
        image, scale = request.image, self._facts.scale
        for name, side, most in (
            ("width", request.width, image.width * scale),
            ("height", request.height, image.height * scale),
        ):
            if not 1 <= side <= most:
                raise InvalidParameter(
                    f"{name} is {side}; it must be 1 to {most}, the most that the network makes of "
                    f"this image",
                    param="scale",
                )
        if not 0 <= request.overlap < request.tile <= self._limits.max_tile:
            raise InvalidParameter(
                f"tile {request.tile} with overlap {request.overlap} is not possible; a tile has "
                f"at most {self._limits.max_tile} pixels a side and overlaps by less than itself",
                param="tile",
            )
        if request.exact and request.overlap < 2 * rim_of(request, self._facts):
            raise InvalidParameter(
                f"overlap is {request.overlap}; exact needs at least "
                f"{2 * rim_of(request, self._facts)}",
                param="overlap",
            )

    def pending(self, request: UpscaleRequest) -> PendingImage:
        picture = Picture(request, self._facts)
        return PendingImage(request=request, num_turns=picture.num_tiles, picture=picture)

    def choose(self, queue: UpscalingQueue) -> Iterator[PendingImage]:
        """Yield requests in turn as long as their tiles have the size of the first and fit."""
        chosen: list[Picture] = []
        while (pending := self._next(queue, chosen)) is not None:
            chosen.append(pending.picture)
            yield pending

    def _next(self, queue: UpscalingQueue, chosen: list[Picture]) -> PendingImage | None:
        """The request whose tile comes next in a step with the chosen ones. A large result that has
        no room yet keeps later ones from taking it."""
        is_large_waiting = False
        for pending in queue:
            if not pending.is_begun and not self._may_begin(pending, queue, is_large_waiting):
                is_large_waiting = True
            elif not chosen or self._fits(pending.picture, chosen):
                return pending
        return None

    def _may_begin(
        self, pending: PendingImage, queue: UpscalingQueue, is_large_waiting: bool
    ) -> bool:
        begun = [other.picture for other in queue if other.is_begun]
        if not begun:
            return True
        if len(begun) >= self._limits.max_num_images:
            return False
        if self._is_small(pending.picture):
            return True
        taken = sum(picture.memory_bytes for picture in begun if not self._is_small(picture))
        room = self._limits.max_work_bytes - taken
        return not is_large_waiting and pending.picture.memory_bytes <= room

    def _is_small(self, picture: Picture) -> bool:
        return picture.memory_bytes * _SMALL_SHARE <= self._limits.max_work_bytes

    def _fits(self, picture: Picture, chosen: list[Picture]) -> bool:
        if picture.tile_size != chosen[0].tile_size:
            return False
        rows = picture.rows + sum(other.rows for other in chosen)
        flops = rows * math.prod(picture.tile_size) * self._facts.flops_per_pixel
        return rows <= self._limits.max_num_rows and flops <= self._limits.max_step_flops

    @torch.inference_mode()
    def compute(self, turns: Sequence[Tile]) -> list[Tensor]:
        """The network's output for each tile."""
        inputs = [tile.pending.picture.tile(tile.number) for tile in turns]
        # If memory runs out, smaller tiles are used, which need the largest overlap of all.
        overlap = max(tile.pending.request.overlap for tile in turns)
        rim = max(rim_of(tile.pending.request, self._facts) for tile in turns)
        outputs = self._runner.run(torch.cat(inputs), max(overlap, 2 * rim), rim)
        return list(torch.split(outputs, [len(given) for given in inputs]))

    @torch.inference_mode()
    def finish(self, turn: Tile, output: Tensor) -> list[UpscaleEvent]:
        """Add a tile to its picture."""
        pending, picture = turn.pending, turn.pending.picture
        if not output.isfinite().all():
            raise Unusable("the network produced numbers that are not finite")
        first, rows = picture.lay(output)
        preview = picture.preview() if pending.is_preview_due() else None
        preview_index = pending.num_previews
        pending.num_previews += preview is not None
        is_last = picture.num_laid == picture.num_tiles
        return [
            UpscaleEvent(
                request_id=pending.request.request_id,
                tile=picture.num_laid,
                num_tiles=picture.num_tiles,
                first_row=first,
                rows=rows,
                preview=preview,
                preview_index=preview_index,
                queue_time_s=turn.queue_time_s,
                examination=picture.examination,
                finish_reason=FinishReason.STOP if is_last else None,
            )
        ]

    def count(
        self, stats: UpscaleStats, turns: Sequence[Tile], events: Sequence[UpscaleEvent]
    ) -> UpscaleStats:
        images = {tile.pending.request.request_id: tile.pending.request.image for tile in turns}
        megapixels = sum(
            len(event.rows) / (1e6 * images[event.request_id].channels) for event in events
        )
        return replace(
            stats,
            num_tiles=stats.num_tiles + len(turns),
            output_megapixels=stats.output_megapixels + megapixels,
            step_tiles=len(turns),
        )

    def rest(self) -> None:
        self._runner.forget()
