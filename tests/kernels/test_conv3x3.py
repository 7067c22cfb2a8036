"""3x3 convolutions: rows alone and among others, layouts, and what the sums lose."""

import random

import pytest
import torch
from torch.nn import functional

from kernels import Convolution, conv3x3, native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")


def convolution(inputs: int, outputs: int) -> Convolution:
    weight = torch.randn(outputs, inputs, 3, 3).mul_((9 * inputs) ** -0.5)
    return Convolution.of(weight, torch.randn(outputs), torch.rand(outputs))


def maps(*shape: int) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    for _ in range(4):
        inputs, outputs = random.randrange(1, 70), random.randrange(1, 70)
        size = random.randrange(1, 40), random.randrange(1, 40)
        given, weights = maps(5, inputs, *size), convolution(inputs, outputs)
        addend = maps(5, outputs, *size)
        together = conv3x3(given, weights, addend, 0.3)
        for row in range(5):
            only = slice(row, row + 1)
            alone = conv3x3(given[only], weights, addend[only], 0.3)
            assert torch.equal(alone, together[only])


def test_a_map_laid_out_otherwise_gives_the_same_bits() -> None:
    given, weights = torch.randn(2, 8, 9, 7), convolution(8, 5)
    laid_out = given.contiguous(memory_format=torch.channels_last)
    for view in (given, laid_out[:, :, ::2], laid_out[..., 1:], laid_out[:, 2:]):
        weights = convolution(view.shape[1], 5)
        assert conv3x3.choice(view, weights)[0] == "cpu"
        copied = view.contiguous(memory_format=torch.channels_last)
        assert torch.equal(conv3x3(view, weights), conv3x3(copied, weights))


def test_results_that_lie_otherwise_are_left_to_the_reference() -> None:
    given, weights = maps(2, 8, 9, 7), convolution(8, 5)
    out = torch.empty(2, 5, 9, 7)
    assert conv3x3.choice(given, weights, out=out)[0] == "reference"
    torch.testing.assert_close(conv3x3(given, weights, out=out), conv3x3(given, weights), **CLOSE)


def test_the_sums_are_as_good_as_thirty_two_bits_allow() -> None:
    """Beside the definition in 64 bits."""
    given, weights = maps(1, 192, 24, 24), convolution(192, 32)
    exact = functional.conv2d(
        given.double(), weights.weight.double(), weights.bias[:32].double(), padding=1
    )
    slopes = weights.slopes[:32, None, None].double()
    error = conv3x3(given, weights) - torch.where(exact < 0, slopes * exact, exact)
    assert error.abs().max() < 5e-5


def test_what_is_not_finite_stays_so() -> None:
    given, weights = maps(1, 4, 12, 12), convolution(4, 4)
    given[0, 2, 5, 5] = float("nan")
    assert not conv3x3(given, weights)[0, :, 4:7, 4:7].isfinite().any()


CLOSE = {"atol": 1e-4, "rtol": 1e-4}
