"""Copies of many small matrices, each to the first rows of another one, in one call."""

from kernels.copy_matrices import cases, cpu, reference
from kernels.registry import op

__all__ = ["copy_matrices"]

copy_matrices = op(cases)(reference.copy_matrices)
copy_matrices.implementation("cpu", supports=cpu.supports)(cpu.copy_matrices)
