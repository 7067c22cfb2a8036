"""What a training will take, without a number of the model read."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from engine.commands.training.memory import estimate
from engine.commands.training.run import run
from engine.commands.training.shapes import SHAPES, estimate_shape
from engine.contract.orders import TrainingOrder
from engine.errors import InsufficientMemory, InvalidParameter

BATCH, IN, HIDDEN = 3, 5, 7


@pytest.fixture
def order(tmp_path):
    return TrainingOrder(
        task="text", model="none", data=tmp_path, output=tmp_path / "out", rank=4, batch_size=1
    )


def test_parts_of_a_known_network():
    def build():
        frozen = nn.Linear(IN, HIDDEN, bias=False).requires_grad_(False)
        return nn.Sequential(frozen, nn.Linear(HIDDEN, 1, bias=False))

    def loss(model):
        return model(torch.zeros(BATCH, IN)).square().sum()

    found = estimate(build, loss, "adamw")
    assert found.num_trained == HIDDEN
    assert found.weights == IN * HIDDEN * 4
    assert (found.adapter, found.gradients, found.optimizer) == (28, 28, 56)
    # The trained layer's input, and the square's. The largest one counts two times more.
    assert found.activations == 4 * (BATCH * HIDDEN + BATCH + 2 * BATCH * HIDDEN)
    assert estimate(build, loss, "sgd").optimizer == 28
    assert found.total == sum(list(found.report().values())[1:-1])


def test_known_shapes_from_their_configurations(order):
    llama = estimate_shape("llama-3-8b", order)
    per_layer = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14_336)
    assert llama.num_trained == 4 * 32 * per_layer
    assert llama.weights == pytest.approx(8.03e9 * 4, rel=0.01)
    unet = estimate_shape("sd-1.5", order)
    assert unet.weights == pytest.approx(859.5e6 * 4, rel=0.01)
    assert 0.5e6 < unet.num_trained < 1.1e6


def test_what_makes_a_training_larger(order):
    small = estimate_shape("sd-1.5", order)
    assert estimate_shape("sd-1.5", replace(order, rank=8)).num_trained == 2 * small.num_trained
    half = estimate_shape("sd-1.5", replace(order, precision="bfloat16"))
    assert half.weights == pytest.approx(small.weights / 2, rel=0.01)
    assert half.activations < 0.9 * small.activations
    assert estimate_shape("sd-1.5", replace(order, size=128)).activations > 2 * small.activations


def test_shapes_that_nobody_knows(order):
    with pytest.raises(InvalidParameter, match=", ".join(SHAPES)):
        estimate_shape("gpt-5", order)


def test_what_does_not_fit_is_refused_before_it_is_loaded(order, tiny_llama):
    order = replace(order, model=str(tiny_llama()))
    with pytest.raises(InsufficientMemory, match="--batch-size"):
        run(order, 1000, lambda message: None)
