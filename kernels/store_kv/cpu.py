"""Row copies, in C++."""

import functools

from torch import Tensor

from kernels import native


def supports(kv: Tensor, kv_cache: Tensor, slot_mapping: tuple[Tensor, Tensor]) -> bool:
    """CPU tensors whose rows' heads lie side by side."""
    heads, dim = kv.shape[2:]
    return kv.stride()[1:] == (heads * dim, dim, 1) and native.runs_on(kv, kv_cache)


def store_kv(kv: Tensor, kv_cache: Tensor, slot_mapping: tuple[Tensor, Tensor]) -> None:
    """See `kernels.store_kv`."""
    blocks, slots = slot_mapping
    tokens, _, heads, dim = kv.shape
    _function()(
        kv.element_size(),
        kv.data_ptr(),
        kv.stride(0),
        kv_cache.data_ptr(),
        kv_cache.stride(0),
        blocks.data_ptr(),
        slots.data_ptr(),
        tokens,
        2 * heads,
        kv_cache.shape[3],
        dim,
    )


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_store_kv", "ipipippiiii")
