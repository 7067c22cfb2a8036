"""Removes the background of pictures that an image model has drawn: `Cutter`."""

import time
from contextlib import aclosing
from dataclasses import dataclass

from engine.contract.matte import MattingEvent, MattingRequest
from engine.contract.pixels import Pixels
from engine.worker.client import EngineClient
from server.http.admission import Lease
from server.http.engine_run import new_id
from server.http.item_metrics import ItemMetrics
from server.http.item_run import ItemRun

_UNCERTAIN = 0.5
"""Answers warn from this `uncertain_fraction` on."""


@dataclass(slots=True)
class Cutter:
    """Cuts out the pictures of one request, each of which has a place at the matting model. The
    request holds the places, too, since some of its pictures may never come."""

    engine: EngineClient
    metrics: ItemMetrics
    model: str
    priority: int
    places: list[Lease]

    async def __call__(self, picture: Pixels) -> tuple[Pixels, tuple[str, ...]]:
        """The picture with alpha, and warnings.

        Raises:
            EngineError: the matting model failed.
        """
        run: ItemRun[MattingEvent] = ItemRun(
            new_id("matte"), self.engine, self.metrics.meter(self.model), self.places.pop()
        )
        async with aclosing(run):
            [event] = await run.answers(
                MattingRequest(
                    request_id=run.id,
                    model=self.model,
                    image=picture,
                    priority=self.priority,
                    arrival_time_s=time.time(),
                )
            )
        assert event.image is not None
        warnings = event.warnings
        if event.uncertain_fraction >= _UNCERTAIN:
            warnings = (
                *warnings,
                f"{event.uncertain_fraction:.0%} of the subject's border came out neither opaque "
                "nor transparent; check it",
            )
        return event.image, warnings
