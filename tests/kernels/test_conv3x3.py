"""3x3 convolutions: rows alone and among others, layouts, and what the sums lose."""

import random

import pytest
import torch
from torch.nn import functional

from kernels import Convolution, conv3x3, isa, native
from kernels.conv3x3.convolution import _TRANSFORMS

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")


DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(
            not isa.multiplies_bf16(), reason="this processor does not multiply bf16 numbers"
        ),
    ),
]


def convolution(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> Convolution:
    weight = torch.randn(outputs, inputs, 3, 3).mul_((9 * inputs) ** -0.5).to(dtype)
    return Convolution.of(weight, torch.randn(outputs), torch.rand(outputs))


def maps(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape).to(dtype, memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_has_the_same_bits_alone_and_among_others(dtype: torch.dtype) -> None:
    """Of small maps each thread computes some of the outputs, of larger ones some of the tiles."""
    for _ in range(4):
        inputs, outputs = random.randrange(1, 70), random.randrange(1, 70)
        size = random.randrange(1, 40), random.randrange(1, 40)
        given, weights = maps(5, inputs, *size, dtype=dtype), convolution(inputs, outputs, dtype)
        addend = maps(5, outputs, *size, dtype=dtype)
        together = conv3x3(given, weights, addend, 0.3)
        assert conv3x3.choice(given, weights, addend)[0] == "cpu"
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


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_in_bf16_a_map_loses_little_more_than_its_rounding(dtype: torch.dtype) -> None:
    """Rounding a result to bf16 loses 0.0017 of it on average; rounded sums and weights lose 0.0041
    in all, and would lose 0.024 in tiles of 4x4 cells."""
    given, weights = maps(1, 64, 32, 32, dtype=dtype), convolution(64, 48, dtype)
    exact = functional.conv2d(given.double(), weights.weight.double(), padding=1)
    found = conv3x3(given, Convolution.of(weights.weight, torch.zeros(48)))
    assert (found - exact).norm() < 0.005 * exact.norm()


def test_maps_and_weights_of_different_types_are_left_to_the_reference() -> None:
    given, weights = maps(2, 8, 9, 7), convolution(8, 5)
    assert conv3x3.choice(given.bfloat16(), weights)[0] == "reference"
    assert conv3x3.choice(given, weights, maps(2, 5, 9, 7).bfloat16())[0] == "reference"


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
    of_weights = _TRANSFORMS[torch.float32].square().sum(1).float()
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
