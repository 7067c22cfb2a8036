"""Multiplication by a weight in bitsandbytes' 4-bit numbers: NormalFloat, or small floats."""

from kernels import _triton
from kernels.linear_nf4 import cases, composed, reference
from kernels.linear_nf4.reference import resolve_absmax
from kernels.registry import op

linear_nf4 = op(cases)(reference.linear_nf4)
linear_nf4.implementation("composed", supports=composed.supports)(composed.linear_nf4)
if _triton.AVAILABLE:
    from kernels.linear_nf4 import triton as triton_nf4

    linear_nf4.implementation("triton", supports=triton_nf4.supports)(triton_nf4.linear_nf4)

__all__ = ["linear_nf4", "resolve_absmax"]
