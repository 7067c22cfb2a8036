"""Memory for the arrays of adapters."""

import random

import pytest
import torch

from engine.lora import arrays as module
from engine.lora.arrays import Arrays
from engine.lora.numbers import AdapterNumbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_arrays_begin_as_zeros_and_lie_apart(dtype, monkeypatch):
    """Those that are larger than a piece, too."""
    monkeypatch.setattr(module, "PIECE_BYTES", 4096)
    made = Arrays(AdapterNumbers(dtype), torch.device("cpu"))
    found = []
    for number in range(1, 40):
        shape = [random.randrange(1, 12) for _ in range(3)]
        found.append(made.zeros(*shape))
        assert (found[-1].dtype, list(found[-1].shape)) == (dtype, shape)
        assert found[-1].is_contiguous() and not found[-1].count_nonzero()
        found[-1].fill_(number)
    found.append(made.zeros(3, 5000))
    assert not found[-1].count_nonzero()
    for number, one in enumerate(found[:-1], 1):
        assert (one == number).all()
