"""The definition, in fp32."""

from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.shared.recurrent_batch import RecurrentBatch


def selective_scan(
    x: Tensor,
    dt: Tensor,
    b: Tensor,
    c: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    a: Tensor,
    d: Tensor,
    dt_bias: Tensor,
    dt_limits: tuple[float, float] = (0.0, inf),
) -> Tensor:
    """Run the recurrence of Mamba 1 or 2 over the rows of each sequence.

    For each row of a head, with its group's b and c:

        Δ = clamp(softplus(dt + dt_bias), *dt_limits)
        S ← S · exp(Δ · a) + (Δ · x) ⊗ b
        y = S c + d · x

    Mamba 1 has one head per channel (P = 1), one group and an `a` for each element of a state;
    Mamba 2 has one `a` per head.

    Args:
        x: [T, H · P]. Not changed, like the next three; rows may have any stride.
        dt: [T, H], x's dtype.
        b, c: [T, G · N], x's dtype. Each group serves H / G neighbouring heads.
        states: [S, H, P, N] fp32. Slots of `batch.write_slots` are mutated.
        batch: rows and slots of the sequences.
        a: [H] or [H, N] fp32, negative.
        d, dt_bias: [H] fp32.
        dt_limits: the least and the greatest Δ.

    Returns:
        [T, H · P], contiguous, x's dtype. Computed in fp32, rounded once. A row's result depends on
            its own sequence alone, and not on how that is cut into steps.

    Papers: Gu and Dao 2023, arXiv:2312.00752, algorithm 2; Dao and Gu 2024, arXiv:2405.21060,
    section 6.
    """
    _, num_heads, head_dim, size = states.shape
    steps = F.softplus(dt.float() + dt_bias).clamp(*dt_limits)
    fades = torch.exp(steps[..., None] * (a if a.dim() == 2 else a[:, None]))  # [T, H, N or 1]
    groups = b.shape[1] // size
    b, c = (
        part.float().view(len(x), groups, size).repeat_interleave(num_heads // groups, 1)
        for part in (b, c)
    )
    values = x.float().view(len(x), num_heads, head_dim)
    out = d[:, None] * values
    for first, last, read, write in batch.on_host():
        state = torch.zeros_like(states[write]) if read < 0 else states[read].clone()
        for row in range(first, last):
            change = steps[row][:, None] * values[row]
            state = state * fades[row][:, None, :] + change[:, :, None] * b[row][:, None, :]
            out[row] += torch.einsum("hpn,hn->hp", state, c[row])
        states[write] = state
    return out.flatten(1).to(x.dtype)
