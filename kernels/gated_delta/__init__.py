"""The gated delta rule: linear attention whose state is corrected by each token and decays."""

from kernels import _triton
from kernels.gated_delta import cases, cpu, reference
from kernels.registry import op

gated_delta = op(cases)(reference.gated_delta)
gated_delta.implementation("cpu", supports=cpu.supports)(cpu.gated_delta)
if _triton.AVAILABLE:
    from kernels.gated_delta import triton

    gated_delta.implementation("triton", supports=triton.supports)(triton.gated_delta)
