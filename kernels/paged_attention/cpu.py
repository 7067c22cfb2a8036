"""Decodes read their blocks where they lie, in C++; prompt chunks go through PyTorch."""

import functools

from torch import Tensor

from kernels import native
from kernels.paged_attention import composed
from kernels.paged_attention.paged_batch import PagedBatch


def supports(
    q: Tensor,
    kv_cache: Tensor,
    batch: PagedBatch,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    kv_scales: Tensor | None = None,
) -> bool:
    """CPU caches of the layout that the composed implementation takes."""
    return (
        q.stride(2) == 1
        and native.runs_on(q, kv_cache)
        and composed.supports(
            q,
            kv_cache,
            batch,
            scale=scale,
            window=window,
            soft_cap=soft_cap,
            kv_scales=kv_scales,
        )
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
) -> Tensor:
    """See `kernels.paged_attention`."""
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, block_size = kv_cache.shape[2:4]
    out = q.new_empty(num_tokens, num_heads * head_dim)
    if batch.num_decodes:
        _function()(
            native.DTYPES[q.dtype],
            q.data_ptr(),
            q.stride(0),
            q.stride(1),
            kv_cache.data_ptr(),
            kv_cache.stride(0),
            batch.block_tables.data_ptr(),
            batch.block_tables.stride(0),
            batch.context_lens.data_ptr(),
            out.data_ptr(),
            batch.num_decodes,
            num_kv_heads,
            num_heads // num_kv_heads,
            block_size,
            head_dim,
            window or 0,
            scale,
        )
    if batch.num_decodes < len(batch.host_context_lens):
        composed.attend_chunks(q, kv_cache, batch, out, scale=scale, window=window)
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_paged_attention_decode", "ipiipipippiiiiiif")
