"""Two launches a shard: shrink to the rank on tensor cores, then expand and add.

A program takes 16 rows and goes through their adapters, reading each once however many rows have
it; from every product it keeps the rows of that adapter. Decoding with many adapters and prefilling
with one are the same code. The inner product is cut along K by K alone: with few rows other
programs sum other parts, with many a program sums all of them in the same order, so a row's result
does not depend on other rows. The expansion is in fp32, not on tensor cores: at low ranks reading
and writing y takes longer. Of ranks above 128 a program shrinks to 128 at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.lora_gather.shard import LoraShard
from kernels.shared.triton_linear import MAX_PARTS, parts_of

TENSOR_CORES = ("_lora_shrink_kernel",)
BLOCK_T = 16
BLOCK_K = 64
BLOCK_N = 64
EXPANDED_RANKS = 16
"""Ranks that the expansion takes at a time; more would need too many registers."""
FEW_ROWS = 64
"""The most rows for which a program sums one part of K."""
MIN_TILES_PER_PART = 8
MAX_BLOCK_R = 128
"""The most ranks that a program shrinks to."""
MAX_RANK = 256
NO_ADAPTER = 1 << 30
"""A number above every adapter's."""


def supports(y: Tensor, x: Tensor, shards: Sequence[LoraShard], adapter_ids: Tensor) -> bool:
    """Supports GPU tensors whose last dimension is contiguous."""
    return (
        _triton.runs_on(y, x, adapter_ids, *(one for shard in shards for one in shard.arrays))
        and x.stride(1) == y.stride(1) == 1
        and all(
            shard.is_contiguous() and not shard.is_packed and shard.a.shape[1] <= MAX_RANK
            for shard in shards
        )
    )


def lora_gather(y: Tensor, x: Tensor, shards: Sequence[LoraShard], adapter_ids: Tensor) -> None:
    """See `kernels.lora_gather`."""
    if len(x):
        for shard in shards:
            _update(shard.part_of(y), x, shard, adapter_ids)


def _update(y: Tensor, x: Tensor, shard: LoraShard, adapter_ids: Tensor) -> None:
    num_rows, size = x.shape
    rank, num_outputs = shard.a.shape[1], y.shape[1]
    num_parts, tiles_per_part = _cut(size)
    parts_per_program = 1 if num_rows <= FEW_ROWS else num_parts
    stored_parts = num_parts // parts_per_program
    inner = torch.empty(stored_parts, num_rows, rank, dtype=torch.float32, device=x.device)
    row_blocks, block_r = triton.cdiv(num_rows, BLOCK_T), _block_r(rank)
    _lora_shrink_kernel[(row_blocks, stored_parts, triton.cdiv(rank, block_r))](
        x,
        x.stride(0),
        shard.a,
        adapter_ids,
        inner,
        num_rows,
        size,
        rank,
        tiles_per_part,
        PARTS=parts_per_program,
        NO_ADAPTER=NO_ADAPTER,
        BLOCK_T=BLOCK_T,
        BLOCK_R=block_r,
        BLOCK_K=BLOCK_K,
    )
    _lora_expand_kernel[(triton.cdiv(num_outputs, BLOCK_N), row_blocks)](
        y,
        y.stride(0),
        inner,
        shard.b,
        adapter_ids,
        shard.scales,
        num_rows,
        num_outputs,
        rank,
        PARTS=stored_parts,
        NO_ADAPTER=NO_ADAPTER,
        BLOCK_T=BLOCK_T,
        BLOCK_R=EXPANDED_RANKS,
        BLOCK_N=BLOCK_N,
    )


def _cut(size: int) -> tuple[int, int]:
    """Return the parts of K, and the tiles of a part."""
    num_tiles = triton.cdiv(size, BLOCK_K)
    return parts_of(num_tiles, min(MAX_PARTS, num_tiles // MIN_TILES_PER_PART))


def _block_r(rank: int) -> int:
    return min(MAX_BLOCK_R, max(16, int(triton.next_power_of_2(rank))))


# The batch decides the number of rows, so it must not specialise kernels.
@triton.jit(do_not_specialize=["T"])
def _lora_shrink_kernel(
    x_ptr,
    x_row_stride,
    a_ptr,
    adapter_ids_ptr,
    inner_ptr,
    T,
    K,
    R,
    tiles_per_part,
    PARTS: tl.constexpr,
    NO_ADAPTER: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    ranks = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    along_k = tl.arange(0, BLOCK_K)
    ids = tl.load(adapter_ids_ptr + rows, mask=rows < T, other=-1)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_row_stride + along_k[None, :]
    # Past the end the last rank is read again; the result is not stored.
    a_rows = a_ptr + tl.minimum(ranks, R - 1)[None, :] * K + along_k[:, None]
    num_tiles = tl.cdiv(K, BLOCK_K)
    inner = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
    adapter = tl.min(tl.where(ids >= 0, ids, NO_ADAPTER), 0)
    while adapter < NO_ADAPTER:
        a = a_rows + adapter.to(tl.int64) * R * K
        mine = (ids == adapter)[:, None]
        total = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
        for part in range(PARTS):
            first = (tl.program_id(1) + part) * tiles_per_part
            last = tl.minimum(first + tiles_per_part, num_tiles)
            part_sum = tl.zeros((BLOCK_T, BLOCK_R), tl.float32)
            for tile in range(first, last):
                k = tile * BLOCK_K
                x_tile = tl.load(x_rows + k, mask=mine & (along_k < K - k)[None, :], other=0.0)
                a_tile = tl.load(a + k, mask=(along_k < K - k)[:, None], other=0.0)
                part_sum = tl.dot(x_tile, a_tile, part_sum, input_precision="ieee")
            total += part_sum
        inner = tl.where(mine, total, inner)
        adapter = tl.min(tl.where(ids > adapter, ids, NO_ADAPTER), 0)
    inner_ptr += tl.program_id(1).to(tl.int64) * T * R
    mask = (rows < T)[:, None] & (ranks < R)[None, :]
    tl.store(inner_ptr + rows.to(tl.int64)[:, None] * R + ranks[None, :], inner, mask=mask)


@triton.jit(do_not_specialize=["T"])
def _lora_expand_kernel(
    y_ptr,
    y_row_stride,
    inner_ptr,
    b_ptr,
    adapter_ids_ptr,
    scales_ptr,
    T,
    N,
    R,
    PARTS: tl.constexpr,
    NO_ADAPTER: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    ranks = tl.arange(0, BLOCK_R)
    ids = tl.load(adapter_ids_ptr + rows, mask=rows < T, other=-1)
    inner_rows = inner_ptr + rows.to(tl.int64)[:, None] * R + ranks[None, :]
    # Past the end the last output is read again; the result is not stored.
    b_columns = b_ptr + tl.minimum(columns, N - 1)[None, :] + ranks.to(tl.int64)[:, None] * N
    update = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
    adapter = tl.min(tl.where(ids >= 0, ids, NO_ADAPTER), 0)
    while adapter < NO_ADAPTER:
        mine = (ids == adapter)[:, None]
        b = b_columns + adapter.to(tl.int64) * R * N
        product = tl.zeros((BLOCK_T, BLOCK_N), tl.float32)
        for r in range(0, R, BLOCK_R):
            mask = mine & (ranks < R - r)[None, :]
            inner = tl.load(inner_rows + r, mask=mask, other=0.0)
            for part in range(1, PARTS):
                # Parts are few rows long, so 32 bits suffice.
                inner += tl.load(inner_rows + (part * T * R + r), mask=mask, other=0.0)
            b_tile = tl.load(b + r * N, mask=(ranks < R - r)[:, None], other=0.0).to(tl.float32)
            product = tl.dot(inner, b_tile, product, input_precision="ieee")
        update = tl.where(mine, product * tl.load(scales_ptr + adapter), update)
        adapter = tl.min(tl.where(ids > adapter, ids, NO_ADAPTER), 0)
    y = y_ptr + rows.to(tl.int64)[:, None] * y_row_stride + columns[None, :]
    stored = (ids >= 0)[:, None] & (columns < N)[None, :]
    value = tl.load(y, mask=stored, other=0.0).to(tl.float32) + update
    tl.store(y, value.to(y_ptr.dtype.element_ty), mask=stored)
