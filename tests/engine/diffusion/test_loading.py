"""The trial picture before an image model is ready."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.contract.draw import ImageTask
from engine.contract.request import FinishReason
from engine.contract.settings import EngineConfig
from engine.diffusion import loading
from engine.diffusion.loading import trial_request, warm_up
from engine.errors import ModelLoadError
from engine.weights.source import Checkpoint
from tests.helpers.diffusion.engine_runs import run
from tests.helpers.diffusion.toy_family import ToyFamily, mask, picture, request
from tests.helpers.host import Host


@pytest.fixture
def family():
    return ToyFamily()


@pytest.fixture
def engine(family, make_engine):
    return make_engine(family)


@pytest.mark.parametrize(("policy", "first"), [("fcfs", "a"), ("priority", "b")])
def test_the_configured_policy_is_the_engines(family, monkeypatch, policy, first):
    monkeypatch.setattr(loading, "load_family", lambda *args, **options: family)
    monkeypatch.setattr(loading, "weight_bytes", lambda *args, **options: 0)
    monkeypatch.setattr(loading, "limit_threads", lambda num_threads: None)
    config = EngineConfig(device="cpu", scheduling_policy=policy, max_num_images=1)
    checkpoint = Checkpoint("diffusers", Path("unused"), "toy")
    engine, info = loading.load_engine(checkpoint, "toy", config, Host())
    assert info.denoising == family.facts.denoising
    assert info.denoising.default_scheduler == info.denoising.schedulers[0]
    for name, priority in (("a", 0), ("b", -1)):
        engine.add(replace(request(name), priority=priority))
    events, _ = engine.step()
    assert events[0].request_id == first
    engine.shutdown()


@pytest.mark.parametrize("task", ImageTask)
def test_whatever_a_model_does_is_tried(family, engine, task):
    family.facts = replace(family.facts, tasks=(task,))
    warm_up(engine, trial_request(family.facts))
    assert trial_request(family.facts).params.task is task
    assert [key for key, _, _ in family.calls] == ["edit" if task is ImageTask.EDIT else "base"]
    assert not engine.has_work()
    assert engine.stats().num_images == 0, "it is nobody's picture"


@pytest.mark.parametrize("task", ImageTask)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_denoiser_that_gives_no_numbers_is_found(family, engine, task, value):
    family.facts = replace(family.facts, tasks=(task,))
    family.denoise = lambda key, rows: torch.full((len(rows), *rows[0].latents.shape[1:]), value)
    with pytest.raises(ModelLoadError, match=r"trial picture failed: .*latents.*fetch the model"):
        warm_up(engine, trial_request(family.facts))


def test_a_decoder_that_gives_no_numbers_is_found(family, engine):
    family.decode = lambda latents: torch.full((1, 3, 32, 32), float("nan"))
    with pytest.raises(ModelLoadError, match="a picture with values that are not finite"):
        warm_up(engine, trial_request(family.facts))


def test_a_request_that_ends_in_no_numbers_ends_with_an_error_alone(family, engine):
    """A neighbour is drawn as if nothing had been."""
    honest = family.decode
    engine.add(request("good", image=picture(), mask=mask(), task=ImageTask.INPAINT))
    engine.add(request("bad"))
    decoded = []

    def decode(latents):
        decoded.append(latents)
        return honest(latents) if len(decoded) == 1 else honest(latents) * float("nan")

    family.decode = decode
    events = run(engine)
    ends = {e.request_id: e for e in events if e.finish_reason is not None}
    reasons = sorted(end.finish_reason for end in ends.values())
    assert reasons == [FinishReason.ERROR, FinishReason.STOP]
    failed = next(end for end in ends.values() if end.finish_reason is FinishReason.ERROR)
    assert "not finite" in failed.failure.message
