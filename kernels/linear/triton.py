"""Tensor cores on tiles, in an order of sums that the weight's shape alone decides.

K is cut into tiles of `BLOCK_K`, summed one after the other, and these into parts, whose sums are
added in order. With few rows each part has a program of its own, so that there are enough of them
to keep the memory busy, and `_linear_add_kernel` adds; with many rows a program goes through all
parts and adds the same numbers. Both tiles are large enough for the same tensor-core instruction on
each chip (64 rows: warp-group products on sm_90), which sums in one way.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.shared.stages import dtype_name, num_stages
from kernels.shared.triton_linear import MAX_PARTS, parts_of

FEW_ROWS = 64
WANTED_PROGRAMS = 256
"""Two programs for each of 128 processors. The same on all GPUs, because it decides the order of
sums."""
BLOCK_K = 64
TENSOR_CORES = ("_linear_kernel",)
"""Kernels that must not run without tensor cores, in 8 and 16 bits."""
ADD_BLOCK = 512
"""Outputs whose parts a program adds."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The tile of outputs of one program and the way it is computed."""

    rows: int
    columns: int
    num_warps: int
    num_stages: int

    @property
    def constants(self) -> dict[str, int]:
        """The kernel's compile-time arguments."""
        return {"BLOCK_M": self.rows, "BLOCK_N": self.columns, "BLOCK_K": BLOCK_K}


FEW = Tile(64, 64, num_warps=4, num_stages=4)
MANY = Tile(128, 128, num_warps=8, num_stages=3)
FULL_PRECISION = Tile(32, 32, num_warps=4, num_stages=2)
"""The tile for fp32, which has no tensor cores; for tests more than for work."""


# The batch decides the number of rows, so it must not specialise kernels.
@triton.jit(do_not_specialize=["num_rows"])
def _linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_row_stride,
    num_rows,
    num_outputs,
    size,
    parts_per_program,
    tiles_per_part,
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Rows vary fastest, so that programs that run together share tiles of the weight.
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    # Past an end the last row or column is computed again; the result is not stored.
    x_row = tl.minimum(row, num_rows - 1).to(tl.int64) * x_row_stride
    weight_row = tl.minimum(column, num_outputs - 1).to(tl.int64) * size
    x_at = x_ptr + x_row[:, None] + inner[None, :]
    weight_at = weight_ptr + weight_row[None, :] + inner[:, None]
    num_tiles = (size + BLOCK_K - 1) // BLOCK_K
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    first = tl.program_id(2) * parts_per_program
    for part in range(first, first + parts_per_program):
        part_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        end = tl.minimum((part + 1) * tiles_per_part, num_tiles)
        for tile in range(part * tiles_per_part, end):
            k = tile * BLOCK_K
            if EVEN_K:
                x = tl.load(x_at + k)
                weight = tl.load(weight_at + k)
            else:
                x = tl.load(x_at + k, (inner < size - k)[None, :], other=0.0)
                weight = tl.load(weight_at + k, (inner < size - k)[:, None], other=0.0)
            part_sum = tl.dot(x, weight, part_sum, input_precision="ieee")
        total += part_sum
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + column, column < num_outputs, other=0.0)
        total += bias.to(tl.float32)[None, :]
    mask = (row < num_rows)[:, None] & (column < num_outputs)[None, :]
    out_row = (tl.program_id(2).to(tl.int64) * num_rows + row) * num_outputs
    out_at = out_ptr + out_row[:, None] + column[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["num_rows"])
def _linear_add_kernel(
    parts_ptr, bias_ptr, out_ptr, num_rows, num_outputs, num_parts, BLOCK_SIZE: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = column < num_outputs
    total = tl.zeros((BLOCK_SIZE,), tl.float32)
    for part in range(num_parts):
        part_row = (part * num_rows.to(tl.int64) + row) * num_outputs
        total += tl.load(parts_ptr + part_row + column, mask, other=0.0)
    if bias_ptr is not None:
        total += tl.load(bias_ptr + column, mask, other=0.0).to(tl.float32)
    out_at = out_ptr + row * num_outputs + column
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask)


def supports(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
    invariant: bool = False,
) -> bool:
    """Supports calls that need a fixed order of sums; otherwise the vendor's library is faster."""
    return (
        invariant
        and _triton.runs_on(x, weight)
        and x.stride(1) == 1
        and x.shape[1] > 0
        and weight.is_contiguous()
    )


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
    invariant: bool = False,
) -> Tensor:
    """See `kernels.linear`."""
    num_rows, size = x.shape
    num_outputs = weight.shape[0]
    out = x.new_empty(num_rows, num_outputs, dtype=torch.float32 if fp32_out else x.dtype)
    if out.numel() == 0:
        return out
    tile = tile_of(num_rows, x.dtype)
    num_parts, tiles_per_part = cut(num_outputs, size)
    together = num_parts == 1 or num_rows > FEW_ROWS
    written = out if together else x.new_empty(num_parts, *out.shape, dtype=torch.float32)
    rows, columns = triton.cdiv(num_rows, tile.rows), triton.cdiv(num_outputs, tile.columns)
    _linear_kernel[(rows, columns, 1 if together else num_parts)](
        x,
        weight,
        bias if together else None,
        written,
        x.stride(0),
        num_rows,
        num_outputs,
        size,
        num_parts if together else 1,
        tiles_per_part,
        EVEN_K=size % BLOCK_K == 0,
        **tile.constants,
        num_warps=tile.num_warps,
        num_stages=num_stages(
            f"linear {dtype_name(x.dtype)} {tile.rows}x{tile.columns}", tile.num_stages
        ),
    )
    if not together:
        _linear_add_kernel[(num_rows, triton.cdiv(num_outputs, ADD_BLOCK))](
            written, bias, out, num_rows, num_outputs, num_parts, BLOCK_SIZE=ADD_BLOCK
        )
    return out


def tile_of(num_rows: int, dtype: torch.dtype) -> Tile:
    """Return the tile for a number of rows."""
    if dtype is torch.float32:
        return FULL_PRECISION
    return FEW if num_rows <= FEW_ROWS else MANY


def cut(num_outputs: int, size: int) -> tuple[int, int]:
    """Return the parts of K, and the tiles of each but the last, for a [num_outputs, size]
    weight."""
    wanted = WANTED_PROGRAMS // triton.cdiv(num_outputs, FEW.columns)
    return parts_of(triton.cdiv(size, BLOCK_K), min(wanted, MAX_PARTS))
