"""Causal convolution over a few positions, channel by channel, with a state between steps."""

from kernels import _triton
from kernels.registry import op
from kernels.short_conv import cases, cpu, reference

short_conv = op(cases)(reference.short_conv)
short_conv.implementation("cpu", supports=cpu.supports)(cpu.short_conv)
if _triton.AVAILABLE:
    from kernels.short_conv import triton

    short_conv.implementation("triton", supports=triton.supports)(triton.short_conv)
