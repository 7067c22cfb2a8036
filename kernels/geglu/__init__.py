"""The gate of a gated MLP in diffusion transformers and UNets."""

from kernels import _triton
from kernels.geglu import cases, composed, cpu, reference
from kernels.registry import every_call, op

geglu = op(cases)(reference.geglu)
geglu.implementation("composed", supports=every_call)(composed.geglu)
geglu.implementation("cpu", supports=cpu.supports)(cpu.geglu)
if _triton.AVAILABLE:
    from kernels.geglu import triton

    geglu.implementation("triton", supports=triton.supports)(triton.geglu)
