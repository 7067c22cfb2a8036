"""Rows with different adapters do not touch each other, to the bit."""

import dataclasses

import pytest
import torch

from kernels import _triton, lora_gather
from kernels.lora_gather.packed import GROUP, pack, row_bytes, unpack

NUM_ROWS = 70
"""More than the rows for which a program sums one part of K only."""


def updates(name, inputs, rows):
    """What the rows become when they are alone."""
    y = inputs["y"][rows].clone()
    one = inputs | {"y": y, "x": inputs["x"][rows], "adapter_ids": inputs["adapter_ids"][rows]}
    lora_gather.implementations()[name].function(**one)
    return y


@pytest.fixture
def inputs(request):
    device, _, packed = request.param.partition(" ")
    sizes = {"rows": NUM_ROWS, "outputs": 40, "inputs": 1100, "more": ((133, 5),)}
    case = dataclasses.replace(lora_gather.cases.CASES[0], adapters=5, packed=bool(packed), **sizes)
    return lora_gather.cases.make_inputs(case, torch.bfloat16, torch.device(device))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("cpu", "cpu"),
        ("cpu", "cpu packed"),
        ("triton", "cpu"),
        pytest.param("triton", "cuda", marks=pytest.mark.gpu),
    ],
    indirect=["inputs"],
)
def test_rows_do_not_depend_on_who_shares_the_launch(name, inputs, monkeypatch):
    monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    whole = updates(name, inputs, slice(0, NUM_ROWS))
    assert not torch.equal(whole, inputs["y"])
    for rows in (slice(0, 1), slice(3, 20), slice(0, 64), slice(40, 41)):
        assert torch.equal(updates(name, inputs, rows), whole[rows])
    # Threads share the work of a single adapter in another way.
    rows = (inputs["adapter_ids"] == 0).nonzero().flatten()[:4]
    one = inputs | {"shards": inputs["shards"][:1]}
    assert torch.equal(updates(name, one, rows)[:, :40], whole[rows][:, :40])
    order = torch.randperm(NUM_ROWS, device=whole.device)
    assert torch.equal(updates(name, inputs, order), whole[order])


@pytest.mark.parametrize("inputs", ["cpu"], indirect=True)
@pytest.mark.parametrize("name", list(lora_gather.implementations()))
def test_rows_without_an_adapter_stay(name, inputs, monkeypatch):
    monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    inputs["adapter_ids"][::2] = -1
    inputs["x"][::2] = torch.nan
    found = updates(name, inputs, slice(0, NUM_ROWS))
    assert torch.equal(found[::2], inputs["y"][::2])
    assert found.isfinite().all()


@pytest.mark.parametrize("length", [1, 63, 64, 65, 576])
def test_packed_numbers_are_within_half_a_step(length):
    """Also those that are tiny beside others, and whole groups of zeros."""
    sizes = 10.0 ** torch.empty(7, 5, 1).uniform_(-30, 30)
    rows = torch.randn(7, 5, length) * sizes
    rows[0] = 0
    rows[1] *= torch.rand(5, length).lt(0.2)
    packed = pack(rows)
    assert (packed.dtype, packed.shape) == (torch.uint8, (7, 5, row_bytes(length)))
    found = unpack(packed, length)
    assert torch.equal(found[0], rows[0])
    for first in range(0, length, GROUP):
        group, its = rows[..., first : first + GROUP], found[..., first : first + GROUP]
        half_step = group.abs().amax(-1, keepdim=True) / 254
        assert ((group - its).abs() <= half_step * 1.0001).all()


def test_numbers_too_small_for_steps_become_zeros_or_stay_finite():
    rows = torch.full((1, 70), 1e-43)
    rows[0, 64:] = 1e-45
    found = unpack(pack(rows), 70)
    assert found.isfinite().all() and (found - rows).abs().max() <= 1e-43
