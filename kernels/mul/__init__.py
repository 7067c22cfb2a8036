"""The gate of a convolution: PyTorch's product takes longer than a decode step's other gates."""

from kernels.mul import cases, cpu, reference
from kernels.registry import op

mul = op(cases)(reference.mul)
mul.implementation("cpu", supports=cpu.supports)(cpu.mul)
