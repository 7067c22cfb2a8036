"""The gate of attention whose output is gated."""

from kernels import _triton
from kernels.registry import op
from kernels.sigmoid_mul import cases, composed, cpu, reference

sigmoid_mul = op(cases)(reference.sigmoid_mul)
sigmoid_mul.implementation("composed", supports=composed.supports)(composed.sigmoid_mul)
sigmoid_mul.implementation("cpu", supports=cpu.supports)(cpu.sigmoid_mul)
if _triton.AVAILABLE:
    from kernels.sigmoid_mul import triton

    sigmoid_mul.implementation("triton", supports=triton.supports)(triton.sigmoid_mul)
