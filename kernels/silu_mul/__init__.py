"""The gate of a gated MLP."""

from kernels import _triton
from kernels.registry import every_call, op
from kernels.silu_mul import cases, composed, cpu, reference

silu_mul = op(cases)(reference.silu_mul)
silu_mul.implementation("composed", supports=every_call)(composed.silu_mul)
silu_mul.implementation("cpu", supports=cpu.supports)(cpu.silu_mul)
if _triton.AVAILABLE:
    from kernels.silu_mul import triton

    silu_mul.implementation("triton", supports=triton.supports)(triton.silu_mul)
