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
    """See `kernels.gated_delta`."""
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
    b, a = gates.float().chunk(2, 1)
    decay = torch.exp(-a_log.exp() * F.softplus(a + dt_bias))
    out = torch.empty_like(v)
    for first, last, read, write in batch.on_host():
        state = torch.zeros_like(states[write]) if read < 0 else states[read].clone()
        for row in range(first, last):
            state *= decay[row][:, None, None]
            known = torch.einsum("hkv,hk->hv", state, k[row])
            change = b[row].sigmoid()[:, None] * (v[row] - known)
            state += k[row][:, :, None] * change[:, None, :]
            out[row] = torch.einsum("hkv,hk->hv", state, q[row]) * k_dim**-0.5
        states[write] = state
    return out.flatten(1).to(qkv.dtype)
