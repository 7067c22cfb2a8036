"""Redrawing in tiles: what it computes, beside whom, and what of it can be seen."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.contract.draw import ImageTask
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.guidance import combine_cfg
from engine.diffusion.restoring import Restoring
from engine.errors import InvalidParameter
from tests.helpers.diffusion.engine_runs import results, run, take_step
from tests.helpers.diffusion.toy_family import CHANNELS, FACTOR, ToyFamily, picture, request

SIDE = 32
"""The side of the toy family's tiles, in pixels."""


def restoration(request_id="r", width=80, height=56, **changes):
    options = {"task": ImageTask.RESTORE, "strength": 0.8, "seed": 7, **changes}
    image = options.pop("image", None) or picture(width // 2, height // 2, 3)
    return request(request_id, image=image, width=width, height=height, **options)


class PointFamily(ToyFamily):
    """A family whose denoiser sees one cell at a time, so that tiles cannot matter."""

    def __init__(self):
        super().__init__()
        outside = torch.ones(3, 3, dtype=torch.bool)
        outside[1, 1] = False
        self.weight[..., outside] = 0


def finished(stage):
    while stage.step < stage.num_steps:
        take_step(stage)
    return stage


def stage_of(family, **changes):
    (drawing,) = DrawingFactory(family).create(restoration(**changes))
    assert isinstance(drawing.stage, Restoring)
    return drawing.stage


def encoded(stage):
    """After its first pass."""
    while stage.canvas.blend is None:
        take_step(stage)
    return stage


@pytest.mark.parametrize("scheduler", [None, "euler_ancestral", "dpmpp_2m"])
def test_it_is_the_mean_of_predictions_on_one_canvas(scheduler):
    """A tile at a time, each timestep by hand."""
    family, seed = ToyFamily(), random.randrange(1 << 30)
    ours = finished(stage_of(family, seed=seed, scheduler=scheduler)).canvas.final()
    stage = encoded(stage_of(family, seed=seed, scheduler=scheduler))
    canvas, tiling = stage.canvas, stage.tiling
    assert len(tiling.windows) > 4
    with torch.inference_mode():
        while canvas.step < canvas.num_steps:
            rows, index = canvas.rows(), canvas.timestep_index
            total, weight = torch.zeros_like(canvas.latents), torch.zeros(canvas.latents.shape[2:])
            for window in tiling.windows:
                cut = [replace(row, latents=row.latents[(..., *window)]) for row in rows]
                unconditional, full = family.denoise("base", cut).split(1)
                total[(..., *window)] += tiling._weights * combine_cfg(full, unconditional, 3.0)
                weight[window] += tiling._weights
            prediction = canvas.blend.prediction(
                total / weight, canvas.latents, canvas.schedule, index
            )
            canvas.latents = canvas.schedule.step(
                prediction, index, canvas.latents, canvas.generator
            )
            canvas.timestep_index += 1
    torch.testing.assert_close(ours, canvas.latents, atol=1e-4, rtol=1e-4)


def test_tiles_of_a_denoiser_that_sees_points_are_the_whole():
    family = PointFamily()
    tiled = stage_of(family)
    whole = encoded(stage_of(family)).canvas
    assert len(tiled.tiling.windows) > 4
    finished(tiled)
    finished(whole)
    torch.testing.assert_close(tiled.canvas.final(), whole.final(), atol=1e-4, rtol=1e-4)


def test_steps_hold_a_few_tiles_also_of_the_autoencoder():
    family = ToyFamily()
    stage = stage_of(family, strength=1.0, num_inference_steps=3)
    num_tiles = len(stage.tiling.windows)
    per_pass = -(-num_tiles // 4)
    assert stage.num_steps == (1 + 3) * per_pass
    seen, num_encoded = [], 0
    with torch.inference_mode():
        while stage.step < stage.num_steps:
            seen.append(stage.step)
            num_rows, num_calls = stage.num_rows, len(family.calls)
            (outcome,) = stage.compute([stage])
            if stage.step < per_pass:
                assert len(outcome) == num_rows <= 4 and len(family.calls) == num_calls
                num_encoded += num_rows
            else:
                tile = CHANNELS, SIDE // FACTOR, SIDE // FACTOR
                assert family.calls[-1] == ("base", num_rows, tile)
            stage.advance(outcome)
    assert seen == list(range(stage.num_steps))
    assert num_encoded == num_tiles
    assert sum(rows for _, rows, _ in family.calls) == 3 * 2 * num_tiles


def test_it_begins_with_the_latents_of_the_whole_image():
    """The toy's autoencoder sees cells alone, so that tiles cannot matter."""
    family = ToyFamily()
    stage = encoded(stage_of(family))
    latents = family.encode_image(stage.image, None)
    torch.testing.assert_close(stage.canvas.blend._image, latents)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_no_strength_is_no_step(scheduler):
    stage = finished(stage_of(ToyFamily(), strength=0.0, scheduler=scheduler))
    assert stage.canvas.num_steps == 0
    latents = stage.canvas.family.encode_image(stage.image, None)
    torch.testing.assert_close(stage.canvas.final(), latents)


@pytest.mark.parametrize("deterministic", [False, True])
def test_company_changes_nothing(make_engine, deterministic):
    requests = [
        restoration("a"),
        restoration("b", width=64, height=33, n=2, guidance_scale=1.0),
        restoration("c", width=20, height=100, scheduler="euler_ancestral"),
        request("d", image=picture(), task=ImageTask.IMAGE_TO_IMAGE, seed=4),
    ]
    engine = make_engine(deterministic=deterministic)
    arrivals = [random.randint(0, 6) for _ in requests]
    together = results(run(engine, requests, arrivals=arrivals))
    assert len(together) == 5
    for each in requests:
        for key, alone in results(run(make_engine(deterministic=deterministic), [each])).items():
            difference = np.abs(together[key] - alone).max()
            assert difference <= (0 if deterministic else 1), key


def test_a_cancelled_one_leaves_nothing(make_engine):
    engine = make_engine()
    events = run(engine, [restoration("a"), restoration("b")], aborts={3: ["a"]})
    assert set(results(events)) == {("b", 0)}
    assert not engine.has_work()


def test_previews_and_sizes(make_engine):
    events = run(make_engine(), [restoration("a", width=81, height=57, num_previews=2)])
    previews = [event for event in events if event.preview is not None]
    assert len(previews) == 2
    (image,) = [event.image for event in events if event.image is not None]
    assert (image.width, image.height, image.channels) == (81, 57, 3)


def test_the_answer_has_the_colours_of_the_input(make_engine):
    """The toy draws other ones; the input's lowest band comes back."""
    image = picture(40, 28, 3)
    grey = type(image)(width=40, height=28, channels=3, data=bytes([90, 140, 60] * 40 * 28))
    events = run(make_engine(), [restoration("a", image=grey)])
    (answer,) = results(events).values()
    means = answer.reshape(-1, 3).mean(axis=0)
    assert np.abs(means - [90, 140, 60]).max() < 12


def test_more_pull_keeps_closer_to_the_input():
    distances = []
    for power in (8.0, 0.25):
        stage = finished(stage_of(ToyFamily(), restoration=power, strength=1.0))
        distances.append(float((stage.canvas.final() - stage.canvas.blend._image).norm()))
    assert distances[1] < distances[0]


def test_sizes_have_a_limit(make_engine):
    limit = 16 * SIDE * SIDE
    factory = DrawingFactory(ToyFamily())
    assert factory.create(restoration(width=256, height=limit // 256))
    with pytest.raises(InvalidParameter, match=f"at most {limit}"):
        factory.create(restoration(width=256, height=limit // 256 + 1))
