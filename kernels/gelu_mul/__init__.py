"""The gate of a gated MLP with GELU, as in Gemma."""

from kernels import _triton
from kernels.gelu_mul import cases, composed, cpu, reference
from kernels.registry import every_call, op

gelu_mul = op(cases)(reference.gelu_mul)
gelu_mul.implementation("composed", supports=every_call)(composed.gelu_mul)
gelu_mul.implementation("cpu", supports=cpu.supports)(cpu.gelu_mul)
if _triton.AVAILABLE:
    from kernels.gelu_mul import triton

    gelu_mul.implementation("triton", supports=triton.supports)(triton.gelu_mul)
