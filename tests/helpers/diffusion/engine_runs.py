"""Steps an image engine by hand and collects its results."""

from typing import Any

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


def take_step(*stages: Any) -> None:
    """Compute a step that these stages share with no other."""
    with torch.inference_mode():
        for stage, outcome in zip(stages, stages[0].compute(list(stages)), strict=True):
            stage.advance(outcome)


def advance(drawing: Drawing) -> Denoising:
    """Denoise a drawing to its end, without an engine."""
    while not drawing.finished:
        take_step(drawing.stage)
    assert isinstance(drawing.stage, Denoising)
    return drawing.stage


def drawn_by(
    pipeline: Any, drawing: Drawing, *, output_type: str = "latent", **inputs: Any
) -> torch.Tensor:
    """Return what diffusers' pipeline draws for a drawing, from its seed and by its schedule."""
    stage, params = drawing.stage, drawing.request.params
    assert isinstance(stage, Denoising)
    scheduler = stage.schedule._scheduler
    pipeline.scheduler = type(scheduler).from_config(scheduler.config)
    settings = {
        "prompt": drawing.request.prompt,
        "negative_prompt": params.negative_prompt,
        "num_inference_steps": params.num_inference_steps,
        "guidance_scale": params.guidance_scale,
        "generator": torch.Generator().manual_seed(drawing.seed),
    }
    images: torch.Tensor = pipeline(**settings | inputs, output_type=output_type).images
    return images
