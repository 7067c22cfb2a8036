"""Rows with different adapters do not touch each other, to the bit."""

import dataclasses

import pytest
import torch

from kernels import _triton, lora_gather

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
    sizes = {"rows": NUM_ROWS, "outputs": 40, "inputs": 1100, "more": ((33, 5),)}
    case = dataclasses.replace(lora_gather.cases.CASES[0], adapters=5, **sizes)
    return lora_gather.cases.make_inputs(case, torch.bfloat16, torch.device(request.param))


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("cpu", "cpu"),
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
