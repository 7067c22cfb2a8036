"""Multiplication by an 8-bit weight that has a scale per output."""

from kernels import _triton
from kernels.linear_w8 import cases, composed, reference
from kernels.registry import every_call, op

linear_w8 = op(cases)(reference.linear_w8)
linear_w8.implementation("composed", supports=every_call)(composed.linear_w8)
if _triton.AVAILABLE:
    from kernels.linear_w8 import triton as triton_w8

    linear_w8.implementation("triton", supports=triton_w8.supports)(triton_w8.linear_w8)
