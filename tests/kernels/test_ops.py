"""Every op × implementation × case × dtype against the op's reference in fp32."""

import random

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
from kernels import _triton, native
from kernels.paged_attention import PagedBatch

CPU = torch.device("cpu")
DEVICES = [CPU, pytest.param(torch.device("cuda"), marks=pytest.mark.gpu)]
ALLOCATIONS = {torch.ops.aten.empty, torch.ops.aten.new_empty, torch.ops.aten.empty_like}


class PoisonedAllocations(TorchDispatchMode):
    """Fills what an op allocates with NaN, so that an output it forgets to write shows."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in ALLOCATIONS and result.is_floating_point():
            result.fill_(torch.nan)
        return result


def implementations():
    for op in kernels.OPS:
        names = ["reference", *op.implementations()]
        for name in names:
            for case in op.cases.CASES:
                yield pytest.param(op, name, case, id=f"{op.name}-{name}-{case.name}")


def cloned(value, dtype=None):
    """A deep copy that keeps strides and shared storage of views; floats in `dtype`."""
    if isinstance(value, tuple):
        return tuple(cloned(item) for item in value)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return value
    whole = value if value._base is None else value._base
    copy = whole.clone().to(dtype or value.dtype)
    return copy.as_strided(value.shape, value.stride(), value.storage_offset())


def in_fp32(inputs):
    return {
        name: PagedBatch.from_host(
            value.host_block_tables,
            value.host_context_lens,
            value.host_cu_seqlens_q,
            value.num_decodes,
            value.block_tables.device,
        )
        if isinstance(value, PagedBatch)
        else cloned(value, torch.float32)
        for name, value in inputs.items()
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("op", "name", "case"), list(implementations()))
def test_implementation_equals_the_reference(op, name, case, dtype, device, monkeypatch):
    seed = random.randrange(1 << 31)
    torch.manual_seed(seed)
    np.random.seed(seed)
    inputs = op.cases.make_inputs(case, dtype, device)
    exact = in_fp32(inputs)
    expected = op.cases.outputs(op.reference(**exact), exact)
    run = op.reference if name == "reference" else op.implementations()[name].function
    if name == "triton":
        # Interpreted where there is no GPU.
        monkeypatch.setattr(_triton, "runs_on", lambda *tensors: True)
    refused = case.name in getattr(op.cases, "REFUSED", {}).get(name, ())
    if name != "reference":
        assert op.implementations()[name].supports(**inputs) is not refused
    if refused:
        return
    with PoisonedAllocations():
        found = op.cases.outputs(run(**inputs), inputs)
    for one, (got, want) in enumerate(zip(found, expected, strict=True)):
        assert got.shape == want.shape
        if got.numel() == 0:
            continue
        error = (got.float() - want).abs()
        # Relative where values are large: `outputs` of a case may reach thousands.
        error = error / want.abs().clamp(min=1.0)
        worst = int(error.nan_to_num(nan=torch.inf).argmax())
        assert error.flatten()[worst] <= op.cases.TOLERANCE[dtype], (
            f"{op.name} {name} {case.name} {dtype} seed {seed}: output {one} element {worst} is "
            f"{got.flatten()[worst]} instead of {want.flatten()[worst]}"
        )


@pytest.mark.parametrize("op", kernels.OPS, ids=lambda op: op.name)
def test_explain_names_the_implementation_that_runs(op, monkeypatch):
    inputs = op.cases.make_inputs(op.cases.CASES[0], torch.float32, CPU)
    names = list(op.implementations())
    on_cpu = [name for name in names if name != "triton"]
    assert op.explain(**inputs).startswith(f"{op.name}: {(on_cpu or ['reference'])[0]}")
    monkeypatch.setattr(native, "library", lambda: None)
    without = [name for name in on_cpu if name != "cpu"]
    assert op.explain(**inputs).startswith(f"{op.name}: {(without or ['reference'])[0]}")
    assert all(name in op.explain(**inputs) for name in names if name != "composed")


@pytest.mark.parametrize("op", kernels.OPS, ids=lambda op: op.name)
def test_contract_is_written_down(op):
    assert "Args:" in op.__doc__
    assert op.__name__ == op.name
