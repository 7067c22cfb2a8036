"""Copies are those of PyTorch to the bit, and what is not finite is found wherever it is."""

import random

import pytest
import torch

from kernels import copy_matrices

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def numbers(*shape):
    """Numbers of all sizes, some of which only some types can hold."""
    sizes = 10.0 ** torch.empty(shape).uniform_(-44, 4)
    return torch.randn(shape) * sizes


@pytest.mark.parametrize("source_type", DTYPES)
@pytest.mark.parametrize("type", DTYPES)
def test_bits_are_those_of_the_reference(type, source_type):
    shapes = [(random.randrange(1, 40), random.randrange(1, 700)) for _ in range(20)]
    sources = [numbers(*shape).to(source_type) for shape in shapes]
    sources[::2] = [source.mT.contiguous().mT for source in sources[::2]]
    outs = [torch.full((len(one) + 2, one.shape[1]), 7.0, dtype=type) for one in sources]
    expected = [out.clone() for out in outs]
    assert copy_matrices.implementations()["cpu"].function(outs, sources) == -1
    assert copy_matrices.reference(expected, sources) == -1
    for out, one in zip(outs, expected, strict=True):
        assert torch.equal(out.view(torch.uint8), one.view(torch.uint8))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("number", "type"),
    [
        (float("nan"), torch.bfloat16),
        (float("-inf"), torch.float32),
        (65520.0, torch.float16),
        (-3.4e38, torch.bfloat16),
    ],
)
def test_the_first_that_is_not_finite_is_named(number, type, turned):
    sources = [torch.randn(16, 100) for _ in range(9)]
    wrong = random.randrange(8)
    for index in (wrong, 8):
        sources[index][random.randrange(16), random.randrange(100)] = number
    if turned:
        sources = [source.mT.contiguous().mT for source in sources]
    outs = [torch.empty(16, 100, dtype=type) for _ in sources]
    for copy in (copy_matrices.implementations()["cpu"].function, copy_matrices.reference):
        assert copy(outs, sources) == wrong


def test_bytes_are_copied_as_they_are():
    source, out = torch.randint(256, (3, 77)).byte(), torch.randint(256, (5, 77)).byte()
    assert copy_matrices.choice([out], [source])[0] == "cpu"
    assert copy_matrices([out], [source]) == -1
    assert torch.equal(out[:3], source)
    assert not out[3:].any()


def test_what_does_not_fit_is_left_to_the_reference():
    out = torch.zeros(4, 8)
    for source in (torch.ones(5, 8), torch.ones(4, 9), torch.ones(4), torch.ones(4, 8).byte()):
        assert copy_matrices.choice([out], [source])[0] == "reference"
    assert copy_matrices.choice([out[:, ::2]], [torch.ones(4, 4)])[0] == "reference"
