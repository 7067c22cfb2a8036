"""Tensor cores on tiles of the weight, which is widened in registers or multiplied as int8.

The sum's order depends on the weight's shape alone (`kernels/shared/triton_linear.py`); with int8
activations it is exact.
"""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.shared.int8_activations import SMALLEST
from kernels.shared.triton_linear import ROW_COUNT, Output, plan, write

TENSOR_CORES = ("_linear_w8_kernel",)
BLOCK_K = 128


def supports(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> bool:
    """Supports GPU tensors whose last dimension is contiguous."""
    return _triton.runs_on(x, weight, scale) and x.stride(1) == 1 and weight.is_contiguous()


def linear_w8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """See `kernels.linear_w8`."""
    num_outputs, size = weight.shape
    num_rows = x.shape[0]
    cut = plan(num_rows, num_outputs, size, BLOCK_K, torch.int8 if int8_activations else x.dtype)
    out = Output(cut, x, num_outputs, torch.int32 if int8_activations else torch.float32)
    if not num_rows:
        return out.result
    given, row_scale = _rounded(x) if int8_activations else (x, None)
    _linear_w8_kernel[cut.grid(num_rows, num_outputs)](
        given,
        given.stride(0),
        weight,
        row_scale,
        scale,
        bias,
        out.written,
        num_rows,
        num_outputs,
        size,
        cut.tiles_per_part,
        BLOCK_K=BLOCK_K,
        EVEN_K=size % BLOCK_K == 0,
        **cut.constants,
        **cut.tuned_options("linear_w8", given.dtype),
    )
    return out.added_up(row_scale, scale, bias)


def _rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round whole rows by `int8_activations.round_to_int8`: [M, K] int8 and [M] fp32."""
    num_rows, size = x.shape
    q = torch.empty(num_rows, size, dtype=torch.int8, device=x.device)
    scale = torch.empty(num_rows, dtype=torch.float32, device=x.device)
    _round_rows_kernel[(num_rows,)](
        x,
        x.stride(0),
        q,
        scale,
        size,
        SMALLEST=SMALLEST,
        BLOCK_SIZE=1024,
        # A fused x * inverse + ROUNDER would round once where the definition rounds twice.
        enable_fp_fusion=False,
    )
    return q, scale


@triton.jit
def _part_sum(
    x_ptr,
    x_row_stride,
    weight_ptr,
    rows,
    columns,
    M,
    N,
    K,
    first,
    last,
    SUM_TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    """Sum the tiles `first` ... `last` - 1 along K: [BLOCK_M, BLOCK_N]."""
    inner = tl.arange(0, BLOCK_K)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_row_stride + inner[None, :]
    # Past the end the last weight is read again; the result is not stored.
    weight_rows = weight_ptr + tl.minimum(columns, N - 1).to(tl.int64)[None, :] * K + inner[:, None]
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM_TYPE)
    for tile in range(first, last):
        k = tile * BLOCK_K
        if EVEN_K:
            x = tl.load(x_rows + k, mask=(rows < M)[:, None], other=0)
            weight = tl.load(weight_rows + k)
        else:
            x = tl.load(x_rows + k, mask=(rows < M)[:, None] & (inner < K - k)[None, :], other=0)
            weight = tl.load(weight_rows + k, mask=(inner < K - k)[:, None], other=0)
        total = tl.dot(x, weight.to(x.dtype), total, input_precision="ieee", out_dtype=SUM_TYPE)
    return total


@triton.jit(do_not_specialize=ROW_COUNT)
def _linear_w8_kernel(
    x_ptr,
    x_row_stride,
    weight_ptr,
    row_scale_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    tiles_per_part,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
):
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    SUM_TYPE: tl.constexpr = tl.int32 if x_ptr.dtype.element_ty == tl.int8 else tl.float32
    num_tiles = tl.cdiv(K, BLOCK_K)
    total = tl.zeros((BLOCK_M, BLOCK_N), SUM_TYPE)
    for part in range(PARTS):
        first = (tl.program_id(2) + part) * tiles_per_part
        last = tl.minimum(first + tiles_per_part, num_tiles)
        total += _part_sum(
            x_ptr,
            x_row_stride,
            weight_ptr,
            rows,
            columns,
            M,
            N,
            K,
            first,
            last,
            SUM_TYPE,
            BLOCK_M,
            BLOCK_N,
            BLOCK_K,
            EVEN_K,
        )
    write(total, rows, columns, row_scale_ptr, scale_ptr, bias_ptr, out_ptr, M, N)


@triton.jit
def _round_rows_kernel(
    x_ptr, x_row_stride, q_ptr, scale_ptr, K, SMALLEST: tl.constexpr, BLOCK_SIZE: tl.constexpr
):
    # Adding 1.5 * 2^23 leaves no bits below one, which rounds halves to even.
    ROUNDER: tl.constexpr = 12582912.0
    row = tl.program_id(0).to(tl.int64)
    inner = tl.arange(0, BLOCK_SIZE)
    largest = tl.zeros((BLOCK_SIZE,), tl.float32)
    for k in range(0, K, BLOCK_SIZE):
        x = tl.load(x_ptr + row * x_row_stride + k + inner, mask=inner < K - k, other=0.0)
        largest = tl.maximum(largest, tl.abs(x.to(tl.float32)))
    amax = tl.max(largest, 0)
    inverse = tl.div_rn(127.0, tl.maximum(amax, SMALLEST))
    tl.store(scale_ptr + row, tl.div_rn(amax, 127.0))
    for k in range(0, K, BLOCK_SIZE):
        x = tl.load(x_ptr + row * x_row_stride + k + inner, mask=inner < K - k, other=0.0)
        rounded = (x.to(tl.float32) * inverse + ROUNDER) - ROUNDER
        tl.store(q_ptr + row * K + k + inner, rounded.to(tl.int8), mask=inner < K - k)
