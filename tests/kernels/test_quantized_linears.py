"""Triton's quantised linears: a row's result does not depend, to the bit, on how many share it."""

import dataclasses

import pytest
import torch

from kernels import linear_gguf, linear_nf4, linear_w4a16, linear_w8
from kernels.linear_gguf import GGUFType
from kernels.shared import triton_linear as _triton_linear

pytestmark = pytest.mark.usefixtures("interpreted")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
NUM_ROWS = 130
OPS = [linear_gguf, linear_w8, linear_w4a16, linear_nf4]


def rows_of(op, dtype, device, **changes):
    """A function from a slice of rows to what the op makes of them; K of some parts."""
    case = dataclasses.replace(
        op.cases.CASES[0], rows=NUM_ROWS, outputs=31, inputs=2048, bias=True, **changes
    )
    inputs = op.cases.make_inputs(case, dtype, torch.device(device))
    x = inputs.pop("x")
    run = op.implementations()["triton"].function
    return lambda rows: run(x[rows], **inputs)


def differing(run, counts=(1, 16, 17, 64, 65)):
    """Numbers of rows which change the first of them; all `NUM_ROWS` are the norm."""
    whole = run(slice(0, NUM_ROWS))
    return [count for count in counts if not torch.equal(run(slice(0, count)), whole[:count])]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_rows_do_not_depend_on_their_number(op, device):
    run = rows_of(op, torch.bfloat16, device)
    assert not differing(run)
    assert torch.equal(run(slice(40, 41))[0], run(slice(0, NUM_ROWS))[40])


@pytest.mark.parametrize("device", DEVICES)
def test_neither_with_int8_activations(device):
    assert not differing(rows_of(linear_w8, torch.bfloat16, device, int8_activations=True))


@pytest.mark.parametrize("device", DEVICES)
def test_nor_for_k_quants(device):
    changes = {"quant_type": GGUFType.Q4_K}
    assert not differing(rows_of(linear_gguf, torch.bfloat16, device, **changes), (1, 65))


def test_the_check_can_fail(monkeypatch):
    """A cut of K that depends on the number of rows shows."""
    plan = _triton_linear.plan

    def careless(num_rows, *sizes):
        cut = plan(num_rows, *sizes)
        if num_rows > _triton_linear.FEW_ROWS:
            return dataclasses.replace(
                cut, num_parts=1, parts_per_program=1, tiles_per_part=1 << 16
            )
        return cut

    launcher = linear_w8.implementations()["triton"].function
    monkeypatch.setitem(launcher.__globals__, "plan", careless)
    assert differing(rows_of(linear_w8, torch.float32, "cpu"), (1,)) == [1]


def test_parts_cover_every_tile_once():
    for size in (1, 31, 128, 576, 1000, 4096, 14336):
        for num_outputs in (1, 1000, 4096, 128256):
            cuts = [
                _triton_linear.plan(rows, num_outputs, size, 128, torch.bfloat16)
                for rows in (1, 16, 17, 64, 65, 4000)
            ]
            assert len({(cut.num_parts, cut.tiles_per_part) for cut in cuts}) == 1
            num_tiles = -(-size // 128)
            covered = cuts[0].num_parts * cuts[0].tiles_per_part
            assert num_tiles <= covered < num_tiles + cuts[0].tiles_per_part
