"""Unpacks tiles of the weight in registers, then multiplies on tensor cores.

The sum's order depends on the weight's shape alone (`kernels/shared/triton_linear.py`).
"""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.linear_w4a16.layouts import PER_INT32
from kernels.linear_w4a16.reference import SYMMETRIC_ZERO
from kernels.shared.triton_linear import ROW_COUNT, Output, plan, runs_of, spread, write

TENSOR_CORES = ("_linear_w4a16_kernel",)
BLOCK_K = 128


def supports(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> bool:
    """Supports GPU tensors whose last dimension is contiguous."""
    return (
        _triton.runs_on(x, qweight, scales)
        and x.stride(1) == 1
        and qweight.is_contiguous()
        and scales.is_contiguous()
        and (zeros is None or zeros.is_contiguous())
    )


def linear_w4a16(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """See `kernels.linear_w4a16`."""
    num_rows, size = x.shape
    num_outputs = qweight.shape[1]
    cut = plan(num_rows, num_outputs, size, BLOCK_K, x.dtype)
    groups = 0 if g_idx is not None else runs_of(group_size, BLOCK_K)
    out = Output(cut, x, num_outputs, torch.float32)
    if num_rows:
        _linear_w4a16_kernel[cut.grid(num_rows, num_outputs)](
            x,
            x.stride(0),
            qweight,
            scales,
            zeros,
            g_idx,
            bias,
            out.written,
            num_rows,
            num_outputs,
            size,
            group_size,
            cut.tiles_per_part,
            GROUPS=groups,
            SYMMETRIC_ZERO=SYMMETRIC_ZERO,
            PER_INT32=PER_INT32,
            BLOCK_K=BLOCK_K,
            EVEN_K=size % BLOCK_K == 0,
            **cut.constants,
            **cut.tuned_options(f"linear_w4a16 {groups}", x.dtype),
        )
    return out.added_up(None, None, bias)


@triton.jit(do_not_specialize=ROW_COUNT)
def _linear_w4a16_kernel(
    x_ptr,
    x_row_stride,
    qweight_ptr,
    scales_ptr,
    zeros_ptr,
    g_idx_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    group_size,
    tiles_per_part,
    # Groups that a tile along K has, all whole; 0: each weight looks up its own.
    GROUPS: tl.constexpr,
    SYMMETRIC_ZERO: tl.constexpr,
    PER_INT32: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.arange(0, BLOCK_K)
    packed = tl.arange(0, BLOCK_K // PER_INT32)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_row_stride + inner[None, :]
    stored = (columns < N)[None, :]
    num_tiles = tl.cdiv(K, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in range(PARTS):
        first = (tl.program_id(2) + part) * tiles_per_part
        last = tl.minimum(first + tiles_per_part, num_tiles)
        part_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for tile in range(first, last):
            k = tile * BLOCK_K
            packed_rows = (k // PER_INT32 + packed).to(tl.int64)[:, None]
            if EVEN_K:
                x = tl.load(x_rows + k, mask=(rows < M)[:, None], other=0.0)
                packed_mask = stored
            else:
                in_k = inner < K - k
                x = tl.load(x_rows + k, mask=(rows < M)[:, None] & in_k[None, :], other=0.0)
                packed_mask = stored & (packed_rows < K // PER_INT32)
            q = tl.load(qweight_ptr + packed_rows * N + columns[None, :], mask=packed_mask, other=0)
            shifts = tl.arange(0, PER_INT32) * 4
            q = tl.reshape((q[:, None, :] >> shifts[None, :, None]) & 15, (BLOCK_K, BLOCK_N))
            if GROUPS > 0:
                group = k // group_size + tl.arange(0, GROUPS)
                group_mask = stored & (group * group_size < K)[:, None]
            elif g_idx_ptr is not None:
                group = tl.load(g_idx_ptr + k + inner, mask=inner < K - k, other=0)
                group_mask = stored
            else:
                group = (k + inner) // group_size
                group_mask = stored & (inner < K - k)[:, None]
            at = group.to(tl.int64)[:, None] * N + columns[None, :]
            scale = tl.load(scales_ptr + at, mask=group_mask, other=0.0).to(tl.float32)
            if zeros_ptr is not None:
                zero = tl.load(zeros_ptr + at, mask=group_mask, other=0).to(tl.int32)
                q -= spread(zero, BLOCK_K)
            else:
                q -= SYMMETRIC_ZERO
            weight = q.to(tl.float32) * spread(scale, BLOCK_K)
            part_sum = tl.dot(x, weight.to(x.dtype), part_sum, input_precision="ieee")
        total += part_sum
    write(total, rows, columns, None, None, bias_ptr, out_ptr, M, N)
