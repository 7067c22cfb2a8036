"""Multiplication by weights that were rearranged for the CPU once, when they were loaded."""

from kernels.linear_packed import cases, cpu, reference
from kernels.linear_packed.packed_weight import PackedWeight
from kernels.registry import op

__all__ = ["PackedWeight", "linear_packed"]

linear_packed = op(cases)(reference.linear_packed)
linear_packed.implementation("cpu", supports=cpu.supports)(cpu.linear_packed)
