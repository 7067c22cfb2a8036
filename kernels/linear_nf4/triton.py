"""Looks tiles of the weight up in the code, then multiplies on tensor cores.

The sum's order depends on the weight's shape alone (`kernels/shared/triton_linear.py`).
"""

import functools

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.shared.four_bit_numbers import FP4, NF4
from kernels.shared.triton_linear import ROW_COUNT, Output, plan, runs_of, spread, write

TENSOR_CORES = ("_linear_nf4_kernel",)
BLOCK_K = 64


def supports(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    block_size: int,
    shape: tuple[int, int],
    bias: Tensor | None = None,
    *,
    fp4: bool = False,
) -> bool:
    """Supports GPU tensors whose last dimension is contiguous and whose rows start with a byte."""
    return (
        _triton.runs_on(x, weight, absmax)
        and x.stride(1) == 1
        and weight.is_contiguous()
        and shape[1] % 2 == 0
    )


def linear_nf4(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    block_size: int,
    shape: tuple[int, int],
    bias: Tensor | None = None,
    *,
    fp4: bool = False,
) -> Tensor:
    """See `kernels.linear_nf4`."""
    num_rows = x.shape[0]
    num_outputs, size = shape
    cut = plan(num_rows, num_outputs, size, BLOCK_K, x.dtype)
    blocks = runs_of(block_size, BLOCK_K) if size % block_size == 0 else 0
    out = Output(cut, x, num_outputs, torch.float32)
    if num_rows:
        _linear_nf4_kernel[cut.grid(num_rows, num_outputs)](
            x,
            x.stride(0),
            weight,
            absmax,
            _code(x.device, fp4),
            bias,
            out.written,
            num_rows,
            num_outputs,
            size,
            block_size,
            cut.tiles_per_part,
            BLOCKS=blocks,
            BLOCK_K=BLOCK_K,
            EVEN_K=size % BLOCK_K == 0,
            **cut.constants,
            **cut.tuned_options(f"linear_nf4 {blocks}", x.dtype),
        )
    return out.added_up(None, None, bias)


@functools.cache
def _code(device: torch.device, fp4: bool) -> Tensor:
    return torch.tensor(FP4 if fp4 else NF4, device=device)


@triton.jit(do_not_specialize=ROW_COUNT)
def _linear_nf4_kernel(
    x_ptr,
    x_row_stride,
    weight_ptr,
    absmax_ptr,
    code_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    block_size,
    tiles_per_part,
    # Blocks that a tile along K has, all whole; 0: each weight looks up its own.
    BLOCKS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.arange(0, BLOCK_K)
    pairs = tl.arange(0, BLOCK_K // 2)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_row_stride + inner[None, :]
    # Past the end the last weight is read again; the result is not stored.
    column = tl.minimum(columns, N - 1).to(tl.int64)[None, :]
    weight_rows = weight_ptr + column * (K // 2) + pairs[:, None]
    num_tiles = tl.cdiv(K, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in range(PARTS):
        first = (tl.program_id(2) + part) * tiles_per_part
        last = tl.minimum(first + tiles_per_part, num_tiles)
        part_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for tile in range(first, last):
            k = tile * BLOCK_K
            if EVEN_K:
                x = tl.load(x_rows + k, mask=(rows < M)[:, None], other=0.0)
                packed = tl.load(weight_rows + k // 2)
            else:
                in_k = inner < K - k
                x = tl.load(x_rows + k, mask=(rows < M)[:, None] & in_k[None, :], other=0.0)
                in_pairs = (pairs < (K - k) // 2)[:, None]
                packed = tl.load(weight_rows + k // 2, mask=in_pairs, other=0)
            # The first weight of a pair is in the high bits.
            shifts = 4 - tl.arange(0, 2) * 4
            packed = packed.to(tl.int32)[:, None, :] >> shifts[None, :, None]
            q = tl.reshape(packed & 15, (BLOCK_K, BLOCK_N))
            if BLOCKS > 0:
                start = k + tl.arange(0, BLOCKS) * block_size
                at = column * (K // block_size) + (start // block_size)[:, None]
                scale = tl.load(absmax_ptr + at, mask=(start < K)[:, None], other=0.0)
            else:
                at = (column * K + (k + inner)[:, None]) // block_size
                scale = tl.load(absmax_ptr + at, mask=(inner < K - k)[:, None], other=0.0)
            weight = tl.load(code_ptr + q) * spread(scale, BLOCK_K)
            part_sum = tl.dot(x, weight.to(x.dtype), part_sum, input_precision="ieee")
        total += part_sum
    write(total, rows, columns, None, None, bias_ptr, out_ptr, M, N)
