"""Steps of a training, with something small that learns."""

import dataclasses
import math
import random
from pathlib import Path

import pytest
import torch
from torch import nn

from engine.commands.training.loop import LEAST_RATE, learning_rate_factor, train
from engine.commands.training.losses import Losses
from engine.contract.orders import TrainingOrder
from engine.errors import CorruptFile, InvalidParameter

WANTED = torch.tensor([1.0, -2.0, 3.0])


class Toy:
    """Learns a vector; fails at a step if it shall."""

    def __init__(self, order, fails_at=None, is_broken_at=None):
        self.order = order
        self.weight = nn.Parameter(torch.zeros(3))
        self.fails_at, self.is_broken_at = fails_at, is_broken_at
        self.num_losses = 0
        self.samples = []

    @property
    def parameters(self):
        return [self.weight]

    def loss(self, draws):
        self.num_losses += 1
        if self.num_losses == self.fails_at:
            raise KeyboardInterrupt
        seen = WANTED + torch.randn(3, generator=draws)
        loss = (nn.functional.dropout(self.weight) - seen).square().mean()
        return loss * math.nan if self.num_losses == self.is_broken_at else loss

    def save(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(self.weight.data, folder / "weight.pt")

    def restore(self, folder: Path):
        self.weight.data = torch.load(folder / "weight.pt", weights_only=True)

    def sample(self, folder: Path, step: int):
        torch.rand(random.randrange(1, 9))  # must not matter
        self.samples.append(step)


@pytest.fixture(autouse=True)
def no_curve(monkeypatch):
    """The drawing of each checkpoint's curve took most of the time."""
    monkeypatch.setattr(Losses, "_draw", lambda losses: None)


@pytest.fixture
def order(tmp_path):
    return TrainingOrder(
        task="text",
        model="none",
        data=tmp_path / "none",
        output=tmp_path / "out",
        steps=60,
        learning_rate=0.1,
        save_every=7,
        seed=random.randrange(1000),
    )


def finished(order, **toy):
    order.output.mkdir(exist_ok=True)
    learner = Toy(order, **toy)
    told = []
    report = train(learner, order, told.append)
    return learner, report, told


def test_it_learns(order):
    learner, _, told = finished(order)
    # Losses of single steps are noise; what was learned is not.
    assert (learner.weight - WANTED).norm() < WANTED.norm()
    assert [message["step"] for message in told] == list(range(1, 61))
    kept = torch.load(order.output / "adapter" / "weight.pt", weights_only=True)
    assert torch.equal(kept, learner.weight.data)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_an_interrupted_training_ends_with_the_same_bits(order, tmp_path, optimizer):
    order = dataclasses.replace(order, optimizer=optimizer)
    whole, report, _ = finished(order)
    order = dataclasses.replace(order, output=tmp_path / "other", resume=True)
    with pytest.raises(KeyboardInterrupt):
        finished(order, fails_at=random.randrange(8, 60))
    resumed, again, told = finished(order)
    assert 0 < len(told) < 60
    assert torch.equal(resumed.weight, whole.weight)
    assert again["last_loss"] == report["last_loss"]
    tables = [(order.output.parent / name / "loss.csv").read_text() for name in ("out", "other")]
    assert tables[0] == tables[1]


def test_samples_change_nothing(order, tmp_path):
    plain, _, _ = finished(order)
    changes = {"output": tmp_path / "sampled", "sample_every": 9, "sample_prompts": ("a",)}
    learner, _, _ = finished(dataclasses.replace(order, **changes))
    assert learner.samples == [9, 18, 27, 36, 45, 54]
    assert torch.equal(learner.weight, plain.weight)


def test_a_loss_that_is_no_number_ends_it_and_leaves_the_checkpoint(order):
    with pytest.raises(InvalidParameter, match=r"step 16.*learning-rate"):
        finished(order, is_broken_at=16)
    checkpoint = order.output / "checkpoints" / "step-00000014"
    assert torch.load(checkpoint / "adapter" / "weight.pt", weights_only=True).isfinite().all()
    assert not (order.output / "adapter").exists()


def test_a_damaged_checkpoint_is_named(order):
    order = dataclasses.replace(order, resume=True)
    with pytest.raises(KeyboardInterrupt):
        finished(order, fails_at=16)
    (order.output / "checkpoints" / "step-00000014" / "optimizer.pt").write_bytes(b"nothing")
    with pytest.raises(CorruptFile, match="step 14"):
        finished(order)


def test_one_that_was_finished_is_not_trained_again(order):
    order = dataclasses.replace(order, resume=True)
    finished(order)
    _, report, told = finished(order)
    assert not told
    assert report["steps"] == 60


@pytest.mark.parametrize("steps", [1, 5, 100, 3000])
def test_the_rate_rises_and_falls(steps):
    rates = [learning_rate_factor(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) <= 1.0
    assert min(rates) > 0.0
    if steps > 50:
        assert rates[-1] == pytest.approx(LEAST_RATE, abs=0.01)
