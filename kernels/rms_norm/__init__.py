"""Root-mean-square normalisation, alone and fused with the residual addition before it."""

from kernels import _triton
from kernels.registry import every_call, op
from kernels.rms_norm import add_cases, cases, composed, cpu, reference

rms_norm = op(cases)(reference.rms_norm)
add_rms_norm = op(add_cases)(reference.add_rms_norm)
rms_norm.implementation("composed", supports=every_call)(composed.rms_norm)
add_rms_norm.implementation("composed", supports=every_call)(composed.add_rms_norm)
rms_norm.implementation("cpu", supports=cpu.supports)(cpu.rms_norm)
add_rms_norm.implementation("cpu", supports=cpu.supports_add)(cpu.add_rms_norm)
if _triton.AVAILABLE:
    from kernels.rms_norm import triton

    rms_norm.implementation("triton", supports=triton.supports)(triton.rms_norm)
    add_rms_norm.implementation("triton", supports=triton.supports_add)(triton.add_rms_norm)
