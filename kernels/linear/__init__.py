"""Multiplication by plain weights."""

from kernels import _triton
from kernels.linear import cases, composed, reference
from kernels.registry import op

linear = op(cases)(reference.linear)
linear.implementation("composed", supports=composed.supports)(composed.linear)
if _triton.AVAILABLE:
    from kernels.linear import triton

    linear.implementation("triton", supports=triton.supports)(triton.linear)
