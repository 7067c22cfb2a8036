"""The selective scan of state-space models: a decaying state, changed and read by each token."""

from kernels import _triton
from kernels.registry import op
from kernels.selective_scan import cases, cpu, reference

selective_scan = op(cases)(reference.selective_scan)
selective_scan.implementation("cpu", supports=cpu.supports)(cpu.selective_scan)
if _triton.AVAILABLE:
    from kernels.selective_scan import triton

    selective_scan.implementation("triton", supports=triton.supports)(triton.selective_scan)
