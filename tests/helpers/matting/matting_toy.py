"""A matting engine with a toy network, and requests for it."""

import time
from typing import Any

import numpy as np

from engine.contract.matte import MattingEvent, MattingRequest
from engine.matting.work import MattingEngine, MattingLimits, MattingWork
from engine.pictures.arrays import pixels_of
from tests.helpers.matting.matting_scenes import scene


class Bright:
    """Finds what is warm; fails on a picture whose first pixel is pure green."""

    def mask(self, image: np.ndarray) -> np.ndarray:
        if image[0, 0].tolist() == [0, 255, 0]:
            raise ZeroDivisionError
        return (image[..., 0] > image[..., 2]).astype(np.float32)


def make(clock: Any = time.perf_counter, **limits: Any) -> MattingEngine:
    given = MattingLimits(**{"max_num_images": 8, "max_num_queued": 8} | limits)
    return MattingEngine(MattingWork(Bright(), given, clock=clock), given)


def ask(request_id: str, **fields: Any) -> MattingRequest:
    image = fields.pop("image", None)
    pixels = pixels_of(scene(48, 64, 3).image if image is None else image)
    return MattingRequest(request_id=request_id, model="m", image=pixels, **fields)


def run(engine: MattingEngine, *requests: MattingRequest) -> dict[str, MattingEvent]:
    """Run until all is done and return the last event of each request."""
    for request in requests:
        engine.add(request)
    found: dict[str, MattingEvent] = {}
    while engine.has_work():
        for event in engine.step()[0]:
            assert event.request_id not in found
            if event.finish_reason is not None:
                found[event.request_id] = event
    return found
