"""Whatever goes wrong for one image request ends that request: its neighbours do not notice."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from engine.contract.draw import ImageTask
from engine.contract.request import FinishReason
from engine.diffusion import drawing_factory
from engine.diffusion.denoising import Denoising
from engine.diffusion.drawing import Drawing
from engine.diffusion.drawing_factory import DrawingFactory
from engine.diffusion.engine import DiffusionEngine
from engine.diffusion.loading import trial_request, warm_up
from engine.diffusion.noise_schedule import NoiseSchedule
from engine.diffusion.prompt_cache import PromptCache
from engine.diffusion.scheduler import StepScheduler
from engine.errors import ModelLoadError
from tests.helpers.diffusion import engine_runs
from tests.helpers.diffusion.engine_runs import results
from tests.helpers.diffusion.toy_family import ToyFamily, mask, picture, request

PROMPT = "a culprit"
SEED = 666


class Fault(Exception):
    """What is injected."""


def is_culprit(thing: object) -> bool:
    """Whether it belongs to the culprit: its request, prompt, drawing, row, latents, schedule …"""
    for part in (thing, getattr(thing, "request", None), getattr(thing, "prompt", None)):
        if getattr(part, "prompt", None) == PROMPT or getattr(part, "text", None) == PROMPT:
            return True
    key = getattr(getattr(thing, "prompt", None), "key", None)
    if getattr(key, "text", None) == PROMPT or getattr(thing, "is_culprits", False):
        return True
    if isinstance(thing, StepScheduler):
        return any(entry.num_steps == 7 for entry in thing._entries.values())
    if isinstance(thing, Denoising):
        return thing.branches.full[0].steps[0].key.text == PROMPT
    if isinstance(thing, str):
        return thing == PROMPT
    return isinstance(thing, list | tuple) and any(map(is_culprit, thing))


STAGES: dict[str, tuple[object, str]] = {
    "pixels": (drawing_factory, "prepare"),
    "prompt": (ToyFamily, "encode_prompts"),
    "prompt cache": (PromptCache, "encode"),
    "drawing": (DrawingFactory, "_create"),
    "prompt states": (DrawingFactory, "_encode"),
    "entry": (DiffusionEngine, "_entry"),
    "schedule": (StepScheduler, "schedule"),
    "rows": (Denoising, "rows"),
    "denoiser": (ToyFamily, "denoise"),
    "guidance": (Denoising, "_combine"),
    "step": (Denoising, "advance"),
    "finished picture": (Denoising, "result"),
    "preview": (Drawing, "preview_due"),
}


@pytest.fixture
def make_engine(make_engine):
    """Deterministic ones: neighbours are compared bit by bit."""
    return partial(make_engine, deterministic=True)


def requests():
    """The culprit arrives in the middle; some schedules draw noise, one masks."""
    return [
        request("a", seed=1, num_inference_steps=5, scheduler="euler_ancestral"),
        request("b", seed=2, n=2, num_inference_steps=8, num_previews=2),
        request("culprit", PROMPT, seed=SEED, num_inference_steps=7, num_previews=1,
                negative_prompt="x", image=picture(), task=ImageTask.IMAGE_TO_IMAGE, strength=1.0),
        request("c", seed=3, num_inference_steps=6, task=ImageTask.INPAINT, image=picture(),
                mask=mask()),
        request("d", seed=4, num_inference_steps=9, scheduler="dpmpp_2m_sde"),
    ]  # fmt: skip


def run(engine, items):
    with capture_logs() as logs:
        events = engine_runs.run(engine, items)
    return events, logs


def inject(
    monkeypatch, target: object, name: str, after: int = 0, error: Callable[[], Exception] = Fault
) -> list[int]:
    """Makes a function raise when it has the culprit in hand, after letting it pass some times."""
    original, hits = getattr(target, name), []

    def broken(*args: object, **kwargs: object) -> object:
        if any(map(is_culprit, args)):
            hits.append(1)
            if len(hits) > after:
                raise error()
        return original(*args, **kwargs)

    monkeypatch.setattr(target, name, broken)
    return hits


def check(events, logs, expected, tolerance=0, code="request_failed"):
    failed = [event for event in events if event.failure is not None]
    assert {(e.request_id, e.finish_reason) for e in failed} == {("culprit", FinishReason.ERROR)}
    [last] = failed
    assert last.failure.code == code
    reference = re.search(r"under reference (\w{12})$", last.failure.message)
    [line] = [entry for entry in logs if entry.get("reference") == reference[1]]
    assert (line["log_level"], line["request_id"]) == ("error", "culprit")
    assert [entry["log_level"] for entry in logs].count("error") == 1
    got = results(events)
    assert got.keys() == {key for key in expected if key[0] != "culprit"}
    for key, levels in got.items():
        assert np.abs(levels - expected[key]).max() <= tolerance, key


def check_clean(engine):
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert len(engine._scheduler) == 0


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize(
    ("stage", "after"), [(stage, 0) for stage in STAGES] + [(s, 3) for s in list(STAGES)[6:11]]
)
def test_a_fault_ends_its_request_alone(make_engine, monkeypatch, stage, after, deterministic):
    expected = results(run(make_engine(deterministic=deterministic), requests())[0])
    assert len(expected) == 6
    engine = make_engine(deterministic=deterministic)
    hits = inject(monkeypatch, *STAGES[stage], after=after)
    events, logs = run(engine, requests())
    assert hits
    # Without the culprit a call has other rows, which costs a rounding where they share one.
    check(events, logs, expected, tolerance=0 if deterministic else 1)
    monkeypatch.undo()
    check_clean(engine)
    again = results(run(engine, [replace(requests()[2], request_id="again")])[0])
    assert np.abs(again["again", 0] - expected["culprit", 0]).max() <= (not deterministic)


@pytest.mark.parametrize("name", ["decode", "preview"])
def test_a_fault_of_the_decoder_ends_its_request_alone(make_engine, monkeypatch, name):
    expected = results(run(make_engine(), requests())[0])
    original = ToyFamily.decode

    def advance(self, outcome):
        steps(self, outcome)
        self.latents.is_culprits = is_culprit(self)
        if self.x0 is not None:
            self.x0.is_culprits = is_culprit(self)

    def decode(self, latents):
        if getattr(latents, "is_culprits", False):
            raise Fault
        return original(self, latents)

    steps = Denoising.advance
    monkeypatch.setattr(Denoising, "advance", advance)
    monkeypatch.setattr(ToyFamily, name, decode)
    engine = make_engine()
    events, logs = run(engine, requests())
    check(events, logs, expected)
    check_clean(engine)


def test_a_fault_of_the_noise_schedule_ends_its_request_alone(make_engine, monkeypatch):
    expected = results(run(make_engine(), requests())[0])
    step = NoiseSchedule.step

    def broken(self, prediction, index, latents, generator):
        if generator.initial_seed() == SEED and index == 4:
            raise Fault
        return step(self, prediction, index, latents, generator)

    monkeypatch.setattr(NoiseSchedule, "step", broken)
    events, logs = run(make_engine(), requests())
    check(events, logs, expected)


@pytest.mark.parametrize("stage", ["prompt", "denoiser", "finished picture"])
@pytest.mark.parametrize("error", [MemoryError, lambda: torch.OutOfMemoryError("CUDA out of ...")])
def test_a_request_for_which_memory_runs_out_is_asked_to_come_again(
    make_engine, monkeypatch, stage, error
):
    expected = results(run(make_engine(), requests())[0])
    inject(monkeypatch, *STAGES[stage], error=error)
    events, logs = run(make_engine(), requests())
    check(events, logs, expected, code="over_capacity")
    [message] = [event.failure.message for event in events if event.failure is not None]
    assert "out of memory" in message


def test_memory_that_runs_out_for_the_batch_only_ends_nobody(make_engine):
    class Small(ToyFamily):
        def denoise(self, key, rows):
            if len(rows) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().denoise(key, rows)

    expected = results(run(make_engine(deterministic=False), requests())[0])
    events, _ = run(make_engine(Small(), deterministic=False), requests())
    got = results(events)
    assert got.keys() == expected.keys()
    assert max(np.abs(got[key] - expected[key]).max() for key in got) <= 1


@pytest.mark.parametrize("stage", ["prompt", "schedule", "rows", "denoiser", "step"])
def test_a_fault_for_everybody_ends_everybody_and_the_engine_goes_on(
    make_engine, monkeypatch, stage
):
    def fail(*args: object) -> None:
        raise Fault

    expected = results(run(make_engine(), requests())[0])
    engine = make_engine()
    monkeypatch.setattr(*STAGES[stage], fail)
    events, logs = run(engine, requests())
    failed = [(e.request_id, e.index) for e in events if e.failure is not None]
    assert sorted(failed) == sorted(expected)
    references = [entry["reference"] for entry in logs if "reference" in entry]
    assert len(set(references)) == len(references) >= 5
    monkeypatch.undo()
    check_clean(engine)
    got = results(run(engine, requests())[0])
    assert all(np.array_equal(got[key], expected[key]) for key in expected)


@pytest.mark.parametrize("stage", ["prompt", "denoiser", "step"])
def test_a_poisoned_device_ends_the_engine(make_engine, monkeypatch, stage):
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    inject(monkeypatch, *STAGES[stage], error=lambda: error)
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"):
        run(make_engine(), requests())


def test_a_poisoned_device_is_noticed_by_the_decoder(make_engine, monkeypatch):
    def decode(self, latents):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(ToyFamily, "decode", decode)
    with pytest.raises(RuntimeError, match="device-side assert"):
        run(make_engine(), [request()])


def test_a_model_whose_first_picture_fails_is_not_served(make_engine, monkeypatch):
    def denoise(self, key, rows):
        raise Fault

    family = ToyFamily()
    monkeypatch.setattr(ToyFamily, "denoise", denoise)
    with pytest.raises(ModelLoadError, match="a trial picture failed"):
        warm_up(make_engine(family), trial_request(family.facts))
