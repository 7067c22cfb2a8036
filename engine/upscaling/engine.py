"""The upscaling engine, which steps over tiles of images.

A step takes tiles of one size, one of each request in turn, as many as its budget of arithmetic
allows, and runs the network over them at once. After its turn a request is queued anew, so an image
of a thousand tiles does not hold up one of a single tile. Rows are sent as soon as they are
finished.
"""

import itertools
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.contract.enlarge import UpscaleEvent, UpscaleRequest, UpscaleStats
from engine.contract.rejection import rejection
from engine.contract.request import FinishReason
from engine.contract.settings import Policy
from engine.errors import InvalidParameter, QueueFull
from engine.runtime.fault import Unusable, answer_for
from engine.scheduling.policy import create_policy
from engine.scheduling.queue import WaitingQueue
from engine.upscaling.network import NetworkFacts
from engine.upscaling.picture import Picture, rim_of
from engine.upscaling.runner import TileRunner

_SMALL_SHARE = 16
"""A result that takes at most this part of the memory begins at once, however many large ones
wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscalingLimits:
    """The limits of the engine."""

    max_step_flops: float
    """The most arithmetic of a step, unless a single tile has more."""
    max_num_rows: int
    """The most tiles of a step; tiles with alpha count twice."""
    max_work_bytes: int
    """The most memory of unfinished results, unless a single one needs more."""
    max_num_images: int
    """The most images in progress at once."""
    max_num_queued: int
    max_tile: int
    scheduling_policy: Policy = "fcfs"


@dataclass(slots=True, eq=False)
class _Turn:
    """A request with tiles left."""

    rank: tuple[int, ...]
    """The rank of its next tile."""
    picture: Picture
    num_previews: int = 0
    """The number of previews sent."""

    @property
    def request(self) -> UpscaleRequest:
        return self.picture.request

    def is_preview_due(self) -> bool:
        """Whether a preview should follow the tile that was added last. Previews are spread evenly
        over the tiles before the last one."""
        picture, shares = self.picture, self.request.num_previews + 1
        passed = shares * picture.num_laid // picture.num_tiles
        before = shares * (picture.num_laid - 1) // picture.num_tiles
        return before < passed < shares


@dataclass(frozen=True, slots=True)
class _Tile:
    """One tile in a step."""

    turn: _Turn
    number: int
    queue_time_s: float | None

    @property
    def request(self) -> UpscaleRequest:
        return self.turn.request


class UpscalingEngine:
    """An `engine.worker.stepping.SteppingEngine` that enlarges images."""

    def __init__(self, runner: TileRunner, facts: NetworkFacts, limits: UpscalingLimits) -> None:
        self._runner = runner
        self._facts = facts
        self._limits = limits
        self._policy = create_policy(limits.scheduling_policy)
        self._turns: WaitingQueue[_Turn] = self._policy.create_queue()
        self._arrivals = itertools.count()
        self._stats = UpscaleStats()

    def add(self, request: UpscaleRequest) -> None:
        """Queue a request.

        Raises:
            InvalidParameter: the network cannot make that size, or the tiles are not possible.
            QueueFull: too many images wait already.
        """
        self._check(request)
        num_waiting = sum(not turn.picture.is_begun for turn in self._turns)
        if num_waiting >= self._limits.max_num_queued:
            raise QueueFull(
                f"{num_waiting} images are waiting; the limit is {self._limits.max_num_queued}; "
                f"try again later"
            )
        self._turns.push(_Turn(self._next_rank(request), Picture(request, self._facts)))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request; unknown ids are ignored."""
        for turn in [t for t in self._turns if t.request.request_id == request_id]:
            self._turns.remove(turn)

    def has_work(self) -> bool:
        """Whether tiles wait."""
        return bool(self._turns)

    @torch.inference_mode()
    def step(self) -> tuple[list[UpscaleEvent], UpscaleStats]:
        """Run the network over the tiles whose turn it is."""
        started_s = time.perf_counter()
        tiles = self._schedule()
        before = self._stats
        events = self._answer(tiles)
        channels = {tile.request.request_id: tile.request.image.channels for tile in tiles}
        megapixels = sum(len(event.rows) / (1e6 * channels[event.request_id]) for event in events)
        self._stats = replace(
            before,
            num_steps=before.num_steps + 1,
            num_tiles=before.num_tiles + len(tiles),
            output_megapixels=before.output_megapixels + megapixels,
            step_tiles=len(tiles),
            step_time_s=time.perf_counter() - started_s,
        )
        if not self._turns:
            self._runner.forget()
        return events, self.stats()

    def stats(self) -> UpscaleStats:
        """The current statistics."""
        num_begun = sum(turn.picture.is_begun for turn in self._turns)
        return replace(self._stats, num_running=num_begun, num_waiting=len(self._turns) - num_begun)

    def reset_totals(self) -> None:
        """Reset the totals, for example after a trial."""
        self._stats = UpscaleStats()

    def shutdown(self) -> None:
        """Do nothing, as only the network is held."""

    def _next_rank(self, request: UpscaleRequest) -> tuple[int, ...]:
        return self._policy.rank(request, next(self._arrivals))

    def _check(self, request: UpscaleRequest) -> None:
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
                f"tile {request.tile} with overlap {request.overlap} cannot be; a tile has at most "
                f"{self._limits.max_tile} pixels a side and overlaps by less than itself",
                param="tile",
            )
        if request.exact and request.overlap < 2 * rim_of(request, self._facts):
            raise InvalidParameter(
                f"overlap is {request.overlap}; exact needs at least "
                f"{2 * rim_of(request, self._facts)}",
                param="overlap",
            )

    def _schedule(self) -> list[_Tile]:
        """Choose the next step's tiles: all of one size, one of each request in turn, less
        important requests last."""
        chosen: list[_Tile] = []
        while (turn := self._next_turn(chosen)) is not None:
            self._turns.remove(turn)
            chosen.append(self._claim(turn))
            if turn.picture.num_claimed < turn.picture.num_tiles:
                turn.rank = self._next_rank(turn.request)
                self._turns.push(turn)
        return chosen

    def _next_turn(self, chosen: list[_Tile]) -> _Turn | None:
        """The request whose tile comes next in a step with the chosen ones. A large result that has
        no room yet keeps later ones from taking it."""
        is_large_waiting = False
        for turn in self._turns:
            if not turn.picture.is_begun and not self._may_begin(turn, is_large_waiting):
                is_large_waiting = True
            elif not chosen or self._fits(turn, chosen):
                return turn
        return None

    def _may_begin(self, turn: _Turn, is_large_waiting: bool) -> bool:
        begun = [other.picture for other in self._turns if other.picture.is_begun]
        if not begun:
            return True
        if len(begun) >= self._limits.max_num_images:
            return False
        room = self._limits.max_work_bytes
        if self._is_small(turn.picture):
            return True
        taken = sum(picture.memory_bytes for picture in begun if not self._is_small(picture))
        return not is_large_waiting and taken + turn.picture.memory_bytes <= room

    def _is_small(self, picture: Picture) -> bool:
        return picture.memory_bytes * _SMALL_SHARE <= self._limits.max_work_bytes

    def _fits(self, turn: _Turn, chosen: list[_Tile]) -> bool:
        picture = turn.picture
        if picture.tile_size != chosen[0].turn.picture.tile_size:
            return False
        rows = picture.rows + sum(tile.turn.picture.rows for tile in chosen)
        flops = rows * math.prod(picture.tile_size) * self._facts.flops_per_pixel
        return rows <= self._limits.max_num_rows and flops <= self._limits.max_step_flops

    def _claim(self, turn: _Turn) -> _Tile:
        queue_time_s = None
        if not turn.picture.is_begun:
            queue_time_s = max(0.0, time.time() - turn.request.arrival_time_s)
        return _Tile(turn, turn.picture.claim(), queue_time_s)

    def _answer(self, tiles: list[_Tile]) -> list[UpscaleEvent]:
        """Compute tiles; returns an event for each. Tiles that fail together are tried again one by
        one, so that each fails only by itself."""
        try:
            outputs = self._run(tiles)
        except Exception as error:
            if len(tiles) == 1:
                return self._failed(tiles[0], error)
            return [event for tile in tiles for event in self._answer([tile])]
        return [
            event
            for tile, output in zip(tiles, outputs, strict=True)
            for event in self._lay(tile, output)
        ]

    def _run(self, tiles: list[_Tile]) -> list[Tensor]:
        """The network's output for each tile."""
        inputs = [tile.turn.picture.tile(tile.number) for tile in tiles]
        # If memory runs out, smaller tiles are used, which need the largest overlap of all.
        widest = max((tile.request for tile in tiles), key=lambda request: request.overlap)
        rim = max(rim_of(tile.request, self._facts) for tile in tiles)
        outputs = self._runner.run(torch.cat(inputs), max(widest.overlap, 2 * rim), rim)
        return list(torch.split(outputs, [len(given) for given in inputs]))

    def _lay(self, tile: _Tile, output: Tensor) -> list[UpscaleEvent]:
        picture, request = tile.turn.picture, tile.request
        if picture.is_dropped:
            return []
        try:
            if not output.isfinite().all():
                raise Unusable("the network produced numbers that are not finite")
            first, rows = picture.lay(output)
            preview = picture.preview() if tile.turn.is_preview_due() else None
        except Exception as error:
            return self._failed(tile, error)
        preview_index = tile.turn.num_previews
        tile.turn.num_previews += preview is not None
        is_last = picture.num_laid == picture.num_tiles
        return [
            UpscaleEvent(
                request_id=request.request_id,
                tile=picture.num_laid,
                num_tiles=picture.num_tiles,
                first_row=first,
                rows=rows,
                preview=preview,
                preview_index=preview_index,
                queue_time_s=tile.queue_time_s,
                examination=picture.examination,
                finish_reason=FinishReason.STOP if is_last else None,
            )
        ]

    def _failed(self, tile: _Tile, error: Exception) -> list[UpscaleEvent]:
        """The final event of the tile's request, unless it was sent already."""
        if tile.turn.picture.is_dropped:
            return []
        tile.turn.picture.is_dropped = True
        self.abort(tile.request.request_id)
        return rejection(tile.request, answer_for(error, tile.request.request_id))
