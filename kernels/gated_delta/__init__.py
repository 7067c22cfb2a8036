"""The gated delta rule: linear attention whose state is corrected by each token and decays."""

from torch import Tensor

from kernels import _triton
from kernels.gated_delta import cases, cpu, reference
from kernels.registry import op
from kernels.shared.recurrent_batch import RecurrentBatch


@op(cases)
def gated_delta(
    qkv: Tensor,
    gates: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    a_log: Tensor,
    dt_bias: Tensor,
    num_k_heads: int,
) -> Tensor:
    """Run the recurrence over the rows of each sequence.

    For each row of a value head, with its key head's q and k divided by their lengths:

        S ← S · exp(-exp(a_log) · softplus(a + dt_bias))
        S ← S + k ⊗ sigmoid(b) · (v - Sᵀk)
        y = Sᵀq / √Dk

    Args:
        qkv: [T, 2 · Hk · Dk + Hv · Dv]: queries, keys, values; any strides of rows. Not changed.
        gates: [T, 2 · Hv], qkv's dtype, any strides of rows: b of each value head, then a of each.
        states: [S, Hv, Dk, Dv] fp32. Slots of `batch.write_slots` are mutated.
        batch: rows and slots of the sequences.
        a_log, dt_bias: [Hv] fp32.
        num_k_heads: Hk. Each key head serves Hv / Hk neighbouring value heads.

    Returns:
        [T, Hv · Dv], contiguous, qkv's dtype. Computed in fp32, rounded once. A row's result
            depends on its own sequence alone, and not on how that is cut into steps.

    Paper: Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464, equation 10.
    """
    return reference.gated_delta(
        qkv, gates, states, batch, a_log=a_log, dt_bias=dt_bias, num_k_heads=num_k_heads
    )


gated_delta.implementation("cpu", supports=cpu.supports)(cpu.gated_delta)
if _triton.AVAILABLE:
    from kernels.gated_delta import triton

    gated_delta.implementation("triton", supports=triton.supports)(triton.gated_delta)
