"""Gathered blocks and PyTorch's fused attention.

Decodes of similar context length share one call, with a sequence's heads of one key head as its
query rows; a prompt chunk is one call. Gathered rows and masks are the same in all layers and are
planned once per step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.paged_attention.paged_batch import PagedBatch
from kernels.paged_attention.reference import first_seen

MAX_WASTED_BLOCKS = 32
"""Padding blocks that a group of decodes may gather, which cost about as much as one more call on a
CPU."""
MAX_GROUP_BYTES = 64 << 20
"""Bytes of gathered keys and values of a group; a single long sequence may need more."""


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences that one call serves: G decodes of padded length X, or one prompt chunk."""

    rows: slice
    num_sequences: int
    num_queries: int
    """Rows per sequence: 1 for decodes."""
    length: int
    """X, the keys that the call sees."""
    gather_rows: Tensor
    """[C · G · K · M] int64: runs of S·D elements from the layer's first one: keys, then values
    unless they are the keys."""
    mask: Tensor | None
    """[G, 1, 1, X] or [Q, X], added to the scores; None for plain causality from position 0."""


def supports(
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
) -> bool:
    """Supports caches of q's dtype whose blocks start at a multiple of a head's run of S·D
    elements.

    PyTorch's fused attention has no sinks and cannot bend scores.
    """
    if soft_cap is not None or kv_scales is not None or sinks is not None:
        return False
    num_kv_heads, block_size, head_dim = kv_cache.shape[2:]
    run = block_size * head_dim
    return kv_cache.stride()[1:] == (num_kv_heads * run, run, head_dim, 1) and (
        kv_cache.stride(0) % run == 0
    )


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
    runs = _as_runs(kv_cache)
    groups = _plan(batch, kv_cache, q.dtype, window, aligned)
    if len(groups) == 1:
        return _attend(q, runs, kv_cache, groups[0], scale)
    result = q.new_empty(len(q), q.shape[1] * q.shape[2])
    for group in groups:
        result[group.rows] = _attend(q[group.rows], runs, kv_cache, group, scale)
    return result


def _attend(q: Tensor, runs: Tensor, kv_cache: Tensor, group: Group, scale: float) -> Tensor:
    """Compute attention for one group's queries, [T, H, D] → [T, H·D]."""
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = kv_cache.shape[2]
    kv = runs.index_select(0, group.gather_rows)
    kv = kv.view(kv_cache.shape[1], group.num_sequences, num_kv_heads, -1, head_dim)
    k, v = kv.select(0, 0), kv.select(0, -1)
    if group.num_queries == 1:
        # The heads that share a key head take the place of a sequence's query rows.
        q = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=scale)
        return out.reshape(num_rows, -1)
    k, v = k[:, :, : group.length], v[:, :, : group.length]
    if kv_cache.shape[1] == num_kv_heads == 1:
        # PyTorch copies a key for each of its heads otherwise, which are up to 128 here.
        k, v = k.expand(-1, num_heads, -1, -1), v.expand(-1, num_heads, -1, -1)
    out = F.scaled_dot_product_attention(
        q.transpose(0, 1).unsqueeze(0),
        k,
        v,
        attn_mask=group.mask,
        is_causal=group.mask is None,
        scale=scale,
        enable_gqa=k.shape[1] != num_heads,
    )
    return out.squeeze(0).transpose(0, 1).reshape(num_rows, -1)


def _as_runs(kv_cache: Tensor) -> Tensor:
    """View the memory from the layer's first element on as rows of S·D elements."""
    num_blocks, parts, num_kv_heads, block_size, head_dim = kv_cache.shape
    run = block_size * head_dim
    num_runs = (num_blocks - 1) * (kv_cache.stride(0) // run) + parts * num_kv_heads
    return kv_cache.as_strided((num_runs, run), (run, 1))


def _plan(
    batch: PagedBatch, kv_cache: Tensor, dtype: torch.dtype, window: int | None, aligned: bool
) -> list[Group]:
    """Return the step's groups, which the first layer of the step makes."""
    key = (kv_cache.stride(0), kv_cache.shape[1:], dtype, window, aligned)
    plan: list[Group] | None = batch.plans.get(key)
    if plan is None:
        plan = [
            _group(batch, first, last, kv_cache, dtype, window, aligned)
            for first, last in _ranges(batch, kv_cache)
        ]
        batch.plans[key] = plan
    return plan


def _ranges(batch: PagedBatch, kv_cache: Tensor) -> Iterator[tuple[int, int]]:
    """Cut the sequences into groups: runs of decodes with little padding, then single chunks."""
    block_bytes = kv_cache[0].numel() * kv_cache.element_size()
    num_blocks = (-(-batch.host_context_lens // kv_cache.shape[3])).tolist()
    first, wasted = 0, 0
    for index in range(1, batch.num_decodes):
        wasted += num_blocks[first] - num_blocks[index]
        size = (index - first + 1) * num_blocks[first] * block_bytes
        if wasted > MAX_WASTED_BLOCKS or size > MAX_GROUP_BYTES:
            yield first, index
            first, wasted = index, 0
    if batch.num_decodes:
        yield first, batch.num_decodes
    for index in range(batch.num_decodes, len(num_blocks)):
        yield index, index + 1


def _group(
    batch: PagedBatch,
    first: int,
    last: int,
    kv_cache: Tensor,
    dtype: torch.dtype,
    window: int | None,
    aligned: bool,
) -> Group:
    block_size = kv_cache.shape[3]
    longest = int(batch.host_context_lens[first:last].max())
    num_blocks = -(-longest // block_size)
    rows = slice(int(batch.host_cu_seqlens_q[first]), int(batch.host_cu_seqlens_q[last]))
    num_queries = (rows.stop - rows.start) // (last - first)
    if num_queries == 1:
        length = num_blocks * block_size
        lens = batch.context_lens[first:last]
        hidden: Tensor | None = _decode_mask(lens, length, window, aligned)
    else:
        length = longest
        ends = None if batch.key_ends is None else batch.key_ends[rows]
        hidden = _chunk_mask(num_queries, length, window, kv_cache.device, ends, aligned)
    return Group(
        rows=rows,
        num_sequences=last - first,
        num_queries=num_queries,
        length=length,
        gather_rows=_gather_rows(batch.block_tables[first:last, :num_blocks], kv_cache),
        mask=_scores_to_add(hidden, dtype),
    )


def _gather_rows(block_tables: Tensor, kv_cache: Tensor) -> Tensor:
    """Return the runs of each sequence, head and block, in the order [C, G, K, M]."""
    parts, num_kv_heads, block_size, head_dim = kv_cache.shape[1:]
    runs_per_block = kv_cache.stride(0) // (block_size * head_dim)
    heads = torch.arange(parts * num_kv_heads, device=block_tables.device)
    heads = heads.view(parts, 1, num_kv_heads, 1)
    return (block_tables.long()[None, :, None, :] * runs_per_block + heads).flatten()


def _decode_mask(context_lens: Tensor, length: int, window: int | None, aligned: bool) -> Tensor:
    """Return [G, 1, 1, X] bool: each sequence's last token sees its context."""
    key_at = torch.arange(length, device=context_lens.device)
    ends = context_lens[:, None, None, None]
    hidden = key_at >= ends
    return hidden if window is None else hidden | (key_at < first_seen(ends - 1, window, aligned))


def _chunk_mask(
    num_queries: int,
    length: int,
    window: int | None,
    device: torch.device,
    key_ends: Tensor | None,
    aligned: bool,
) -> Tensor | None:
    """Return [Q, X] bool, or None if it equals plain causality from position 0."""
    if key_ends is None and num_queries == length and (window is None or window >= length):
        return None
    key_at = torch.arange(length, device=device)
    query_at = key_at[length - num_queries :, None]
    hidden = key_at > query_at if key_ends is None else key_at >= key_ends[:, None]
    return hidden if window is None else hidden | (key_at < first_seen(query_at, window, aligned))


def _scores_to_add(hidden: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Convert a mask to the form that needs no conversion in every layer."""
    if hidden is None:
        return None
    mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
    return mask.masked_fill_(hidden, -torch.inf)
