"""Reads the blocks in place, in C++, with one kernel for decodes, prompt chunks and mixtures.

A token's result has the same bits in every batch, chunk and step, and on any number of threads. It
may differ between machines with registers of different lengths.
"""

import functools

import torch
from torch import Tensor

from kernels import native
from kernels.paged_attention.paged_batch import PagedBatch

FORMATS = {torch.int8: 1, torch.float8_e4m3fn: 2}
"""Codes of the packed caches in `task.h`."""
SIGNATURE = "ipiipiipipippppp" + "iiiiiiii" + "ff"


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
    """Supports CPU tensors that keep to the contract and whose query heads are contiguous."""
    return (
        kv_cache.is_cpu
        and (kv_cache.dtype is q.dtype if kv_scales is None else kv_cache.dtype in FORMATS)
        and q.stride(2) == 1
        and kv_cache[:1].is_contiguous()
        and native.runs_on(q)
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
    num_tokens, num_heads, head_dim = q.shape
    parts, num_kv_heads, block_size = kv_cache.shape[1:4]
    out = q.new_empty(num_tokens, num_heads * head_dim)
    _function()(
        native.DTYPES[q.dtype],
        q.data_ptr(),
        q.stride(0),
        q.stride(1),
        kv_cache.data_ptr(),
        0 if kv_scales is None else FORMATS[kv_cache.dtype],
        kv_cache.stride(0),
        None if kv_scales is None else kv_scales.data_ptr(),
        0 if kv_scales is None else kv_scales.stride(0),
        batch.block_tables.data_ptr(),
        batch.block_tables.stride(0),
        batch.context_lens.data_ptr(),
        batch.cu_seqlens_q.data_ptr(),
        None if batch.key_ends is None else batch.key_ends.data_ptr(),
        None if sinks is None else sinks.data_ptr(),
        out.data_ptr(),
        len(batch.host_context_lens),
        parts,
        num_kv_heads,
        num_heads // num_kv_heads,
        block_size,
        head_dim,
        window or 0,
        aligned,
        scale,
        soft_cap or 0.0,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_paged_attention", SIGNATURE)
