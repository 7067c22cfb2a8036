"""Multiplication by a weight of 4-bit integers in groups, as in GPTQ and AWQ."""

from kernels import _triton
from kernels.linear_w4a16 import cases, composed, cpu, reference
from kernels.registry import every_call, op

linear_w4a16 = op(cases)(reference.linear_w4a16)
linear_w4a16.implementation("cpu", supports=cpu.supports)(cpu.linear_w4a16)
linear_w4a16.implementation("composed", supports=every_call)(composed.linear_w4a16)
if _triton.AVAILABLE:
    from kernels.linear_w4a16 import triton as triton_w4a16

    linear_w4a16.implementation("triton", supports=triton_w4a16.supports)(triton_w4a16.linear_w4a16)
