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
    made = Arrays(AdapterNumbers(dtype), torch.device("cpu"), 3, [])
    found = []
    for number in range(1, 40):
        shape = [random.randrange(1, 12) for _ in range(3)]
        found.append(made.zeros(*shape))
        assert (found[-1].dtype, list(found[-1].shape)) == (dtype, shape)
        assert found[-1].is_contiguous() and not found[-1].count_nonzero()
        found[-1].fill_(number)
    found.append(made.zeros(3, 5000, dtype=torch.bool))
    assert found[-1].dtype is torch.bool and not found[-1].count_nonzero()
    for number, one in enumerate(found[:-1], 1):
        assert (one == number).all()


@pytest.mark.parametrize("is_packed", [False, True])
def test_rows_of_an_adapter_lie_side_by_side(is_packed):
    numbers = AdapterNumbers(torch.bfloat16, is_packed)
    sizes = [(random.randrange(1, 30), random.randrange(1, 200)) for _ in range(20)]
    made = Arrays(numbers, torch.device("cpu"), 3, [numbers.num_bytes(*size) for size in sizes])
    every = [made.rows(*size) for size in sizes]
    for number, (one, size) in enumerate(zip(every, sizes, strict=True), 1):
        assert list(one.shape) == [3, *numbers.shape(*size)]
        assert all(one[slot].is_contiguous() for slot in range(3))
        assert not one.count_nonzero()
        one[:] = torch.tensor([number, 100 + number, 200 + number])[:, None, None]
    for number, one in enumerate(every, 1):
        for slot in range(3):
            assert (one[slot] == 100 * slot + number).all()
    ends = [(one[slot].data_ptr(), slot) for one in every for slot in range(3)]
    assert [slot for _, slot in sorted(ends)] == [slot for slot in range(3) for _ in every]


def test_what_nobody_fills_takes_no_memory():
    """Many gigabytes of it are no more than addresses."""
    numbers = AdapterNumbers(torch.bfloat16)
    made = Arrays(numbers, torch.device("cpu"), 1 << 16, [1 << 20])
    one = made.rows(8, 1 << 16)
    one[-1] = 1
    assert not one[0].count_nonzero() and (one[-1] == 1).all()
