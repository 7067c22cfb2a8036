"""Updates of rows do not touch other rows, nor depend on them, to the bit."""

import dataclasses
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


def test_weights_that_were_not_turned_fall_back_to_the_reference():
    case = lora_rows.cases.CASES[0]
    inputs = lora_rows.cases.make_inputs(case, torch.float32, CPU)
    one = inputs["updates"][0]
    plain = RowUpdates(one.a.contiguous(), one.b, one.rows, one.scales)
    assert lora_rows.choice(inputs["y"], inputs["x"], (plain,))[0] == "reference"
    assert lora_rows.choice(inputs["y"].bfloat16(), inputs["x"], (one,))[0] == "reference"
    assert lora_rows.choice(inputs["y"], inputs["x"][:, ::2], (one,))[0] == "reference"
