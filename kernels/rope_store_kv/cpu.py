"""The op in one pass over each token's heads, in C++."""

import functools

import torch
from torch import Tensor

from kernels import native

MAX_HEAD_DIM = 1024
FORMATS = {torch.int8: 1, torch.float8_e4m3fn: 2}
"""Codes of the quantised caches in `cpu.cpp`."""


def supports(
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    kv_cache: Tensor,
    slot_mapping: tuple[Tensor, Tensor],
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scales: Tensor | None = None,
) -> bool:
    """Supports CPU tensors whose heads are contiguous."""
    return (
        heads.stride(2) == 1
        and heads.shape[2] <= MAX_HEAD_DIM
        and kv_cache.device.type == "cpu"
        and (kv_scales is not None or kv_cache.dtype is heads.dtype)
        and native.runs_on(heads)
    )


def rope_store_kv(
    heads: Tensor,
    positions: Tensor,
    cos_sin: Tensor,
    kv_cache: Tensor,
    slot_mapping: tuple[Tensor, Tensor],
    *,
    num_heads: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    eps: float = 1e-6,
    kv_scales: Tensor | None = None,
) -> None:
    """See `kernels.rope_store_kv`."""
    tokens, _, dim = heads.shape
    _function()(
        native.DTYPES[heads.dtype],
        heads.data_ptr(),
        heads.stride(0),
        heads.stride(1),
        tokens,
        num_heads,
        kv_cache.shape[1],
        kv_cache.shape[2],
        dim,
        positions.data_ptr(),
        cos_sin.data_ptr(),
        cos_sin.shape[1],
        None if q_norm is None else q_norm.data_ptr(),
        None if k_norm is None else k_norm.data_ptr(),
        0 if q_norm is None else native.DTYPES[q_norm.dtype],
        eps,
        kv_cache.data_ptr(),
        0 if kv_scales is None else FORMATS[kv_cache.dtype],
        kv_cache.stride(0),
        None if kv_scales is None else kv_scales.data_ptr(),
        0 if kv_scales is None else kv_scales.stride(0),
        kv_cache.shape[3],
        slot_mapping[0].data_ptr(),
        slot_mapping[1].data_ptr(),
    )


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_rope_store_kv", "ipiiiiiiippippifpiipiipp")
