"""Checks one implementation of an op against the op's reference in fp32, for tests and
benchmarks."""

from typing import Any

import torch
from torch import Tensor

from kernels.registry import Op
from kernels.tools.guarded_memory import GuardedMemory


class Mismatch(AssertionError):
    """An implementation refuses its case, computes something else, or writes elsewhere."""


def check(op: Op[..., Any], name: str, case: Any, dtype: torch.dtype, device: torch.device) -> None:
    """Run an implementation once on new random inputs, with guards around all memory.

    Raises:
        Mismatch: names op, implementation, case and the error of which output.
    """
    inputs = op.cases.make_inputs(case, dtype, device)
    exact = GuardedMemory().copied(inputs, torch.float32)
    expected = op.outputs(op.reference(**exact), exact)
    memory = GuardedMemory()
    given = memory.copied(inputs)
    what = f"{op.name} {name} {case.name} {dtype}"
    run = op.reference
    if name != "reference":
        implementation = op.implementations()[name]
        run = implementation.function
        refuses = case.name in getattr(op.cases, "REFUSED", {}).get(name, ())
        if implementation.supports(**given) is refuses:
            raise Mismatch(f"{what}: " + ("not refused" if refuses else "refused"))
        if refuses:
            return
    with memory.holding_allocations():
        result = run(**given)
    found = op.outputs(result, given)
    tolerance = op.cases.TOLERANCE[dtype] + getattr(case, "slack", 0.0)
    tolerance += getattr(op.cases, "SLACK", {}).get(name, {}).get(dtype, 0.0)
    for one, (got, want) in enumerate(zip(found, expected, strict=True)):
        difference = _difference(got, want, tolerance)
        if difference is not None:
            raise Mismatch(f"{what}: output {one} {difference}")
    damage = memory.damage(found)
    if damage is not None:
        raise Mismatch(f"{what}: {damage}")


def _difference(got: Tensor, want: Tensor, tolerance: float) -> str | None:
    if got.shape != want.shape:
        return f"has shape {tuple(got.shape)} instead of {tuple(want.shape)}"
    if got.numel() == 0:
        return None
    excess = _excess(got, want).flatten()
    worst = int(excess.argmax())
    if excess[worst] <= (0.0 if want.dtype is torch.int64 else tolerance):  # ids and counts
        return None
    return f"element {worst} is {got.flatten()[worst]} instead of {want.flatten()[worst]}"


def _excess(got: Tensor, want: Tensor) -> Tensor:
    """Return each element's error beyond one rounding to its own type; relative above 1."""
    unit = half_unit(got, want) if got.dtype.is_floating_point else 0.0
    got, want = got.double(), want.double()
    error = ((got - want).abs() - unit) / want.abs().clamp(min=1.0)
    # Infinities that agree, such as those of masked log-probabilities, are not errors.
    return error.masked_fill(got == want, 0.0).nan_to_num(nan=torch.inf)


def half_unit(got: Tensor, want: Tensor) -> Tensor:
    """Return half the distance between neighbours in `got`'s type, there or at `want`: the largest
    error of one rounding to the nearest."""
    limits = torch.finfo(got.dtype)
    size = torch.maximum(got.double().abs(), want.double().abs()).clamp(min=limits.tiny)
    exponent = torch.frexp(size).exponent - 1
    return torch.ldexp(torch.full_like(size, limits.eps / 2), exponent)
