"""Group normalisation of feature maps with the SiLU that follows it in a residual block."""

from kernels import _triton
from kernels.group_norm_silu import cases, composed, cpu, reference
from kernels.registry import op

group_norm_silu = op(cases)(reference.group_norm_silu)
group_norm_silu.implementation("composed", supports=composed.supports)(composed.group_norm_silu)
group_norm_silu.implementation("cpu", supports=cpu.supports)(cpu.group_norm_silu)
if _triton.AVAILABLE:
    from kernels.group_norm_silu import triton

    group_norm_silu.implementation("triton", supports=triton.supports)(triton.group_norm_silu)
