"""3x3 convolutions: rows alone and among others, layouts, and what the sums lose."""

import random

import pytest
import torch
from torch.nn import functional

from kernels import Convolution, conv3x3, native
from kernels.conv3x3.convolution import _TRANSFORM

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
    """Each of the 4x4 places of a tile is compared with the definition in 64 bits."""
    inputs, outputs = 192, 32
    given, weight = maps(1, inputs, 24, 24), convolution(inputs, outputs).weight
    exact = functional.conv2d(given.double(), weight.double(), padding=1)
    error = conv3x3(given, Convolution.of(weight, torch.zeros(outputs))) - exact
    by_place = error.reshape(outputs, 6, 4, 6, 4).permute(2, 4, 0, 1, 3).flatten(2)
    of_place = by_place.square().mean(-1).sqrt()
    # Means of 1,152 squares: in 150 runs all were within 11 % of what is expected. The largest of
    # so many errors says little: it was from 2.8e-5 to 6.3e-5 in the same runs.
    assert (of_place < 1.3 * expected_error(inputs)).all()


def expected_error(inputs: int) -> torch.Tensor:
    """Root of the mean square that rounding to fp32 leaves, [4, 4], for patches of variance 1 and
    weights of variance 1 / (9 * inputs).

    At one of the 36 places a sum goes through the inputs, and each addition rounds it. After k of
    them its variance is k times that of a product, and rounding adds 0.18 * 2**-48 of its square:
    the mean of a uniform error's over all mantissas. That comes to `inputs**2 / 2` times the
    variance of a product; next to it, what rounds a number once is little. A result takes up the
    places' errors by the squares of its coefficients.
    """
    of_patches = torch.tensor([42.0, 34.0, 34.0, 10.0, 10.0, 42.0])
    """Sums of squares of each row of Lavin and Gray's B^T for F(4, 3)."""
    of_weights = _TRANSFORM.square().sum(1).float()
    of_product = of_patches * of_weights
    products = torch.outer(of_product, of_product) / (9 * inputs)
    of_results = torch.tensor(
        [[1, 1, 1, 1, 1, 0], [0, 1, 1, 4, 4, 0], [0, 1, 1, 16, 16, 0], [0, 1, 1, 64, 64, 1]]
    ).float()
    """Squares of A^T."""
    rounding = 0.18 * 2.0**-48 * inputs**2 / 2
    return (of_results @ (products * rounding) @ of_results.T).sqrt()


def test_what_is_not_finite_stays_so() -> None:
    given, weights = maps(1, 4, 12, 12), convolution(4, 4)
    given[0, 2, 5, 5] = float("nan")
    assert not conv3x3(given, weights)[0, :, 4:7, 4:7].isfinite().any()


CLOSE = {"atol": 1e-4, "rtol": 1e-4}
