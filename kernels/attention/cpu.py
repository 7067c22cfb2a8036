"""Attention in C++: PyTorch's takes up to three times as long for the short sequences of small
pictures."""

import functools

import torch
from torch import Tensor

from kernels import native

MAX_HEAD_DIM = 512
MAX_NUM_KEYS = 16_384
"""The most keys: the scores of a few queries fit a core's cache."""
MAX_KEY_BYTES = 4 << 20
"""The most bytes of a head's keys. They are read once for a few queries at a time, so from memory
they would take twice as long as in PyTorch's attention."""


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Supports CPU tensors whose last dimension is contiguous, of moderate lengths."""
    return (
        native.runs_on(query, key, value)
        and query.shape[3] <= MAX_HEAD_DIM
        and key.shape[2] <= MAX_NUM_KEYS
        and key.shape[2] * key.shape[3] * key.itemsize <= MAX_KEY_BYTES
        and all(tensor.stride(3) == 1 for tensor in (query, key, value))
    )


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """See `kernels.attention`."""
    rows, num_heads, num_queries, head_dim = query.shape
    out = torch.empty((rows, num_queries, num_heads * head_dim), dtype=query.dtype)
    _function()(
        native.DTYPES[query.dtype],
        query.data_ptr(),
        *query.stride()[:3],
        key.data_ptr(),
        *key.stride()[:3],
        value.data_ptr(),
        *value.stride()[:3],
        out.data_ptr(),
        rows,
        num_heads,
        num_queries,
        key.shape[2],
        head_dim,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_attention", "i" + "piii" * 3 + "piiiii")
