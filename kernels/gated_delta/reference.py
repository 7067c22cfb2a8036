"""The definition, in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.shared.recurrent_batch import RecurrentBatch

EPS = 1e-6
"""Added to the squared length of queries and keys."""


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

        S ← exp(-exp(a_log) · softplus(a + dt_bias)) · S
        S ← S + k ⊗ sigmoid(b) · (v - Sᵀk)
        y = Sᵀq / √Dk

    Args:
        qkv: [T, 2 · Hk · Dk + Hv · Dv]: queries, keys, values; any strides of rows. Not changed.
        gates: [T, Hv + len(dt_bias)], qkv's dtype, any strides of rows: b of each value head, then
            a of each, or a of each of its rows of S (Kimi).
        states: [S, Hv, Dk, Dv] fp32. Slots of `batch.write_slots` are mutated.
        batch: rows and slots of the sequences.
        a_log: [Hv] fp32.
        dt_bias: [Hv] fp32, or [Hv · Dk].
        num_k_heads: Hk. Each key head serves Hv / Hk neighbouring value heads.

    Returns:
        [T, Hv · Dv], contiguous, qkv's dtype. Computed in fp32, rounded once. A row's result
            depends on its own sequence alone, and not on how that is cut into steps.

    Papers: Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464, equation 10; decays of rows, Kimi
    Team 2025, arXiv:2510.26692.
    """
    _, num_v_heads, k_dim, v_dim = states.shape
    shapes = ((num_k_heads, k_dim), (num_k_heads, k_dim), (num_v_heads, v_dim))
    parts = torch.split(qkv.float(), [heads * size for heads, size in shapes], 1)
    q, k, v = (part.view(len(part), *shape) for part, shape in zip(parts, shapes, strict=True))
    q, k = (
        (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS)).repeat_interleave(
            num_v_heads // num_k_heads, 1
        )
        for x in (q, k)
    )
    b, a = torch.split(gates.float(), [num_v_heads, len(dt_bias)], 1)
    steps = F.softplus(a + dt_bias).view(len(a), num_v_heads, len(dt_bias) // num_v_heads)
    decay = torch.exp(-a_log.exp()[:, None] * steps)
    out = torch.empty_like(v)
    for first, last, read, write in batch.on_host():
        state = torch.zeros_like(states[write]) if read < 0 else states[read].clone()
        for row in range(first, last):
            state *= decay[row][:, :, None]
            known = torch.einsum("hkv,hk->hv", state, k[row])
            change = b[row].sigmoid()[:, None] * (v[row] - known)
            state += k[row][:, :, None] * change[:, None, :]
            out[row] = torch.einsum("hkv,hk->hv", state, q[row]) * k_dim**-0.5
        states[write] = state
    return out.flatten(1).to(qkv.dtype)
