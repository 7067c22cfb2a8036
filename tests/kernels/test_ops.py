"""Every op × implementation × case × dtype against the op's reference in fp32."""

import random

import pytest
import torch

import kernels
from kernels import _triton, native
from kernels.tools.check import check
from tests.helpers import draws
from tests.helpers.kernels.interpreted import SIZES, as_interpreted

CPU = torch.device("cpu")
GPU = torch.device("cuda")


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def implementations():
    first = random.randrange(6)
    for op in kernels.OPS:
        for name in ["reference", *op.implementations()]:
            for number, case in enumerate(op.cases.CASES):
                for device in devices(name):
                    marks = [pytest.mark.gpu] if device is GPU else []
                    some = dtypes(op, name, number, device, first)
                    id = f"{op.name}-{name}-{case.name}-{device.type}"
                    run = as_interpreted(op, case) if is_interpreted(name, device) else case
                    yield pytest.param(op, name, run, some, device, id=id, marks=marks)


def devices(name):
    if name == "cpu" or not torch.cuda.is_available():
        return [CPU]  # where Triton is interpreted
    return [GPU] if name == "triton" else [CPU, GPU]


def is_interpreted(name, device):
    return name == "triton" and device is CPU


def dtypes(op, name, number, device, first):
    """On CPUs cases take turns, from a drawn one on. Where Triton is interpreted, fp16 goes the way
    of bf16: every third case has it, too. The reference is not compared with itself."""
    every = getattr(op.cases, "TESTED_DTYPES", DTYPES)
    if name == "reference" and device is CPU:
        every = [dtype for dtype in every if dtype is not torch.float32] or every
    if device is GPU or draws.runs_all():
        return every
    if not is_interpreted(name, device):
        return [every[(number + first) % len(every)]]
    turns = every[:2] if number % 3 < 2 else every
    return [turns[(number // 3 + first) % len(turns)]]


@pytest.mark.parametrize(("op", "name", "case", "dtypes", "device"), list(implementations()))
def test_implementation_equals_the_reference(op, name, case, dtypes, device, monkeypatch):
    if name == "triton":
        monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    for dtype in dtypes:
        check(op, name, case, dtype, device)


@pytest.mark.parametrize("op", kernels.OPS, ids=lambda op: op.name)
def test_a_call_says_which_implementation_runs(op, monkeypatch):
    inputs = op.cases.make_inputs(op.cases.CASES[0], torch.float32, CPU)
    names = list(op.implementations())
    on_cpu = [name for name in names if name != "triton"]
    assert op.choice(**inputs)[0] == (on_cpu or ["reference"])[0]
    monkeypatch.setattr(native, "library", lambda: None)
    without = [name for name in on_cpu if name != "cpu"]
    chosen, refused = op.choice(**inputs)
    assert chosen == (without or ["reference"])[0]
    assert {chosen, *refused} >= {name for name in names if name != "composed"}


@pytest.mark.parametrize("op", kernels.OPS, ids=lambda op: op.name)
def test_contract_is_written_down(op):
    assert "Args:" in op.__doc__
    assert op.__name__ == op.name


def test_smaller_cases_are_cases_of_their_operations():
    cases = {op.name: {case.name for case in op.cases.CASES} for op in kernels.OPS}
    assert all(smaller.keys() <= cases[name] for name, smaller in SIZES.items())
