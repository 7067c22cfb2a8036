"""The definition: sequence by sequence, the whole score matrix, in fp32."""

import torch
from torch import Tensor

from kernels.paged_attention.paged_batch import PagedBatch


def paged_attention(
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Tensor | None = None,
    sinks: Tensor | None = None,
    aligned: bool = False,
) -> Tensor:
    """See `kernels.paged_attention`."""
    num_tokens, num_heads, head_dim = q.shape
    result = q.new_empty(num_tokens, num_heads, head_dim)
    for index, context_len in enumerate(batch.context_lens.tolist()):
        first, last = batch.host_cu_seqlens_q[index : index + 2].tolist()
        k, v = gather_context(kv_cache, batch.block_tables[index], context_len)
        if kv_scales is not None:
            scales = kv_scales.unsqueeze(-1)
            k_scale, v_scale = gather_context(scales, batch.block_tables[index], context_len)
            k, v = k.float() * k_scale, v.float() * v_scale
        ends = None if batch.key_ends is None else batch.key_ends[first:last]
        visible = visible_keys(last - first, context_len, window, q.device, ends, aligned)
        attended = attend(q[first:last], k, v, visible, scale, soft_cap, sinks)
        result[first:last] = attended.to(q.dtype)
    return result.flatten(1)


def gather_context(
    kv_cache: Tensor, block_table: Tensor, context_len: int
) -> tuple[Tensor, Tensor]:
    """Return one sequence's keys and values from its blocks, each [K, context_len, D]."""
    block_size = kv_cache.shape[3]
    num_blocks = -(-context_len // block_size)
    blocks = kv_cache[block_table[:num_blocks].long()]  # [M, 2 or 1, K, S, D]
    kv = blocks.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :context_len]
    return kv[0], kv[-1]


def visible_keys(
    num_queries: int,
    context_len: int,
    window: int | None,
    device: torch.device,
    key_ends: Tensor | None = None,
    aligned: bool = False,
) -> Tensor:
    """Return [Q, context_len] bool: the keys that each query sees."""
    query_at = torch.arange(context_len - num_queries, context_len, device=device)[:, None]
    key_at = torch.arange(context_len, device=device)[None, :]
    visible = key_at <= query_at if key_ends is None else key_at < key_ends[:, None]
    return (
        visible if window is None else visible & (key_at >= first_seen(query_at, window, aligned))
    )


def first_seen(query_at: Tensor, window: int, aligned: bool) -> Tensor:
    """Return the first positions that queries see, which may be negative."""
    return query_at // window * window if aligned else query_at + 1 - window


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    soft_cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Compute softmax attention: q [Q, H, D], k and v [K, X, D] → [Q, H, D] fp32."""
    group = q.shape[1] // k.shape[0]
    k, v = k.float().repeat_interleave(group, 0), v.float().repeat_interleave(group, 0)
    scores = torch.einsum("qhd,hxd->hqx", q.float(), k) * scale
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    scores = scores.masked_fill(~visible, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, len(q), 1)), -1)
    weights = scores.softmax(-1)[:, :, : k.shape[1]]
    return torch.einsum("hqx,hxd->qhd", weights, v)
