"""Updates of rows do not touch other rows, nor depend on them, to the bit."""

import ctypes
import dataclasses
import mmap
import random

import pytest
import torch

from kernels import RowUpdates, lora_rows, native

pytestmark = pytest.mark.skipif(native.missing() is not None, reason="no C++ operations")
CPU = torch.device("cpu")
NUM_ROWS = 6


@pytest.fixture
def inputs():
    case = dataclasses.replace(
        lora_rows.cases.CASES[4],
        rows=NUM_ROWS,
        positions=random.randrange(1, 60),
        outputs=random.randrange(1, 80),
        inputs=random.randrange(1, 80),
        ranks=(*lora_rows.cases.CASES[4].ranks, *[2] * 30),
    )
    return lora_rows.cases.make_inputs(case, torch.float32, CPU)


def updated(inputs, rows):
    """These rows of y, as if there were no others."""
    y = inputs["y"][rows].clone()
    own = []
    for one in inputs["updates"]:
        pairs = zip(one.rows.tolist(), one.scales.tolist(), strict=True)
        places = [(rows.index(row), scale) for row, scale in pairs if row in rows]
        index = torch.tensor([place for place, _ in places], dtype=torch.int64)
        own.append(RowUpdates(one.a, one.b, index, torch.tensor([scale for _, scale in places])))
    given = {"y": y, "x": inputs["x"][rows], "updates": tuple(own)}
    assert lora_rows.choice(**given)[0] == "cpu"
    lora_rows(**given)
    return y


def test_a_row_has_the_same_bits_alone_and_among_others(inputs):
    together = updated(inputs, list(range(NUM_ROWS)))
    for row in range(NUM_ROWS):
        assert torch.equal(updated(inputs, [row])[0], together[row])
    order = random.sample(range(NUM_ROWS), 4)
    assert torch.equal(updated(inputs, order), together[order])


def test_a_position_has_the_same_bits_in_any_tile(inputs):
    together = updated(inputs, list(range(NUM_ROWS)))
    first = random.randrange(inputs["y"].shape[1])
    cut = inputs | {name: inputs[name][:, first:].contiguous() for name in ("x", "y")}
    assert torch.equal(updated(cut, list(range(NUM_ROWS))), together[:, first:])


def test_rows_without_updates_stay(inputs):
    without = sorted({*range(NUM_ROWS)} - set(inputs["updates"][-1].rows.tolist()))
    alone = inputs | {"updates": inputs["updates"][-1:]}
    alone["x"][without] = torch.nan
    found = updated(alone, list(range(NUM_ROWS)))
    assert without
    assert torch.equal(found[without], inputs["y"][without])
    assert found.isfinite().all()


def last_of_memory(tensor):
    """A copy behind which nothing may be read."""
    size = -(-tensor.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    area = mmap.mmap(-1, size + mmap.PAGESIZE)
    end = ctypes.addressof(ctypes.c_char.from_buffer(area)) + size
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(end), mmap.PAGESIZE, 0) == 0
    first = size - tensor.nbytes
    copy = torch.frombuffer(area, dtype=tensor.dtype, offset=first, count=tensor.numel())
    return copy.view(tensor.shape).copy_(tensor)


def test_nothing_is_read_behind_an_end(inputs):
    expected = updated(inputs, list(range(NUM_ROWS)))
    updates = tuple(
        RowUpdates(
            last_of_memory(one.a.t()).t(), last_of_memory(one.b.t()).t(), one.rows, one.scales
        )
        for one in inputs["updates"]
    )
    y = last_of_memory(inputs["y"])
    lora_rows(y, last_of_memory(inputs["x"]), updates)
    assert torch.equal(y, expected)


def test_weights_that_were_not_turned_fall_back_to_the_reference():
    case = lora_rows.cases.CASES[0]
    inputs = lora_rows.cases.make_inputs(case, torch.float32, CPU)
    one = inputs["updates"][0]
    plain = RowUpdates(one.a.contiguous(), one.b, one.rows, one.scales)
    assert lora_rows.choice(inputs["y"], inputs["x"], (plain,))[0] == "reference"
    y, x = inputs["y"].bfloat16(), inputs["x"].bfloat16()
    narrow = RowUpdates(one.a.bfloat16(), one.b.bfloat16(), one.rows, one.scales)
    assert lora_rows.choice(y, x, (one,))[0] == "reference"
    assert lora_rows.choice(inputs["y"], inputs["x"], (narrow,))[0] == "reference"
    assert lora_rows.choice(inputs["y"], inputs["x"][:, ::2], (one,))[0] == "reference"
