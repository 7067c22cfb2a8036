"""Steps an image engine by hand and collects its results."""

import numpy as np
import torch

from engine.diffusion.denoising import Denoising
from engine.diffusion.drawing import Drawing


def run(engine, requests=(), *, arrivals=None, aborts=None):
    """Step until idle and return all events. Request i comes before step `arrivals[i]`."""
    events = []
    arrivals = dict(zip(map(id, requests), arrivals or [0] * len(requests), strict=True))
    waiting, step = list(requests), 0
    while waiting or engine.has_work():
        for item in [r for r in waiting if arrivals[id(r)] <= step]:
            engine.add(item)
            waiting.remove(item)
        for request_id in (aborts or {}).get(step, ()):
            engine.abort(request_id)
        if engine.has_work():
            events += engine.step()[0]
        step += 1
    return events


def results(events):
    """{(request_id, index): picture as an array} of the images that finished."""
    return {
        (e.request_id, e.index): np.frombuffer(e.image.data, np.uint8).astype(int)
        for e in events
        if e.image is not None
    }


def advance(drawing: Drawing) -> Denoising:
    """Denoise a drawing to its end, without an engine."""
    stage = drawing.stage
    assert isinstance(stage, Denoising)
    with torch.inference_mode():
        while not drawing.finished:
            (outcome,) = stage.compute([stage])
            stage.advance(outcome)
    return stage
