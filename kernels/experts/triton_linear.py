"""Multiplies for all experts in a launch: a program finds on the device whose rows its tile has.

Weights keep the memory they were loaded into, and a table has their addresses. Sums are those of
`linear` for plain weights and of `linear_gguf` for blocks, in the same order, which depends on the
weight's shape alone: a row has the same bits in both.
"""

from dataclasses import replace

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.experts.expert_weights import ExpertWeights, GgufRows
from kernels.linear.triton import BLOCK_K
from kernels.linear.triton import cut as parts_of_plain
from kernels.linear.triton import tile_of as tile_of_plain
from kernels.linear_gguf.quant_type import BLOCKS
from kernels.linear_gguf.triton import TILE as GGUF_TILE
from kernels.linear_gguf.triton import gguf_weights
from kernels.shared.triton_linear import FEW_ROWS, Output, Plan, plan

TENSOR_CORES = ("_linear_experts_kernel",)
PLAIN = -1
"""Stands for plain weights in place of a number of `GGUFType`."""
ALIGNMENT_BYTES = 16
MOST_EXPERTS = 4096


def supports(
    x: Tensor,
    weights: ExpertWeights,
    starts: Tensor,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> bool:
    """Supports GGUF blocks, or plain weights of x's dtype, on a GPU."""
    first = weights.of[0]
    if isinstance(first, Tensor):
        fits = first.dtype == x.dtype and first.is_contiguous()
    else:
        fits = isinstance(first, GgufRows)
    return (
        fits
        and not int8_activations
        and len(weights.of) <= MOST_EXPERTS
        and x.stride(1) == 1
        and not (weights.addresses % ALIGNMENT_BYTES).any()
        and _triton.runs_on(x, starts)
    )


def linear_experts(
    x: Tensor,
    weights: ExpertWeights,
    starts: Tensor,
    rows: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """See `kernels.experts`."""
    first = weights.of[0]
    size, num_outputs = weights.in_features, weights.out_features
    num_rows, num_experts = (x if rows is None else rows).shape[0], len(weights.of)
    is_gguf = isinstance(first, GgufRows)
    unit, tile = (32, GGUF_TILE) if is_gguf else (BLOCK_K, BLOCK_K)
    cut = plan_experts(num_rows, num_experts, num_outputs, size, x.dtype, is_gguf=is_gguf)
    dtype = x.dtype if bias is None else torch.float32
    out = Output(cut, x, num_outputs, torch.float32, num_rows=num_rows, dtype=dtype)
    if num_rows:
        columns, _, parts = cut.grid(num_rows, num_outputs)
        # Each expert that has rows has one tile that may not be full.
        tiles = min(num_rows, num_experts) + num_rows // cut.block_m
        _linear_experts_kernel[(columns, tiles, parts)](
            x,
            x.stride(0),
            rows,
            starts,
            weights.table,
            first.data.shape[1] if isinstance(first, GgufRows) else size,
            out.written,
            num_rows,
            num_outputs,
            size,
            cut.tiles_per_part,
            NUM_EXPERTS=num_experts,
            TABLE_SIZE=triton.next_power_of_2(num_experts),
            TYPE=int(first.quant_type) if isinstance(first, GgufRows) else PLAIN,
            BLOCK_WEIGHTS=BLOCKS[first.quant_type].num_weights
            if isinstance(first, GgufRows)
            else 1,
            TILE=tile,
            UNIT=unit,
            EVEN_K=size % unit == 0,
            **cut.constants,
            **cut.options,
        )
    sums = out.added_up(None, None, None)
    if bias is None:
        return sums
    expert = torch.searchsorted(starts[1:], torch.arange(num_rows, device=x.device), right=True)
    return sums.add_(bias[expert]).to(x.dtype)


def plan_experts(
    num_rows: int,
    num_experts: int,
    num_outputs: int,
    size: int,
    dtype: torch.dtype,
    *,
    is_gguf: bool,
) -> Plan:
    """Cut a product as for one weight of this shape, with tiles for the average rows per expert.
    With few rows altogether a program sums one part."""
    each = triton.cdiv(num_rows, num_experts)
    if is_gguf:
        cut = plan(each, num_outputs, size, GGUF_TILE, dtype)
    else:
        num_parts, tiles_per_part = parts_of_plain(num_outputs, size)
        tile = tile_of_plain(each, dtype)
        cut = Plan(
            block_m=tile.rows,
            block_n=tile.columns,
            num_parts=num_parts,
            tiles_per_part=tiles_per_part,
            parts_per_program=1,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
    return replace(cut, parts_per_program=1 if num_rows <= FEW_ROWS else cut.num_parts)


@triton.jit(do_not_specialize=["R"])
def _linear_experts_kernel(
    x_ptr,
    x_row_stride,
    rows_ptr,
    starts_ptr,
    table_ptr,
    weight_row_stride,
    out_ptr,
    R,
    N,
    K,
    tiles_per_part,
    NUM_EXPERTS: tl.constexpr,
    TABLE_SIZE: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_WEIGHTS: tl.constexpr,
    TILE: tl.constexpr,
    UNIT: tl.constexpr,
    EVEN_K: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    # Tiles are numbered expert by expert.
    number = tl.arange(0, TABLE_SIZE)
    is_one = number < NUM_EXPERTS
    firsts = tl.load(starts_ptr + number, mask=is_one, other=0).to(tl.int32)
    ends = tl.load(starts_ptr + number + 1, mask=is_one, other=0).to(tl.int32)
    tiles = (ends - firsts + BLOCK_M - 1) // BLOCK_M
    last_tiles = tl.cumsum(tiles, 0)
    expert = tl.sum((last_tiles <= tl.program_id(1)).to(tl.int32), 0)
    if expert >= NUM_EXPERTS:
        return
    tiles_before = tl.sum(tl.where(number < expert, tiles, 0), 0)
    first_row = tl.load(starts_ptr + expert).to(tl.int32)
    last_row = tl.load(starts_ptr + expert + 1).to(tl.int32)
    rows = first_row + (tl.program_id(1) - tiles_before) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_row = rows < last_row
    x_row = rows.to(tl.int64)
    if rows_ptr is not None:
        x_row = tl.load(rows_ptr + rows, mask=is_row, other=0)

    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, UNIT)
    x_rows = x_ptr + x_row[:, None] * x_row_stride + inner[None, :]
    # Past the end the last weight is read again; the result is not stored.
    column = tl.minimum(columns, N - 1).to(tl.int64)
    address = tl.load(table_ptr + expert)
    if TYPE < 0:
        weight_ptr = tl.multiple_of(address.to(x_ptr.dtype), 16)
    else:
        weight_ptr = tl.multiple_of(address.to(tl.pointer_type(tl.uint8)), 16)
    weight_rows = weight_ptr + column[None, :] * weight_row_stride
    num_blocks = K // BLOCK_WEIGHTS
    units_per_part = tiles_per_part * (TILE // UNIT)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in range(PARTS):
        first = (tl.program_id(2) + part) * units_per_part
        last = tl.minimum(first + units_per_part, tl.cdiv(K, UNIT))
        part_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for unit in range(first, last):
            x_mask = is_row[:, None]
            if not EVEN_K:
                in_k = inner < K - unit * UNIT
                x_mask = x_mask & in_k[None, :]
            x = tl.load(x_rows + unit * UNIT, mask=x_mask, other=0.0)
            if TYPE >= 0:
                weight = gguf_weights(weight_rows, num_blocks, unit, inner[:, None], TYPE)
                weight = weight.to(x.dtype)
            elif EVEN_K:
                weight = tl.load(weight_rows + (unit * UNIT + inner)[:, None])
            else:
                at = weight_rows + (unit * UNIT + inner)[:, None]
                weight = tl.load(at, mask=in_k[:, None], other=0.0)
            part_sum = tl.dot(x, weight, part_sum, input_precision="ieee")
        total += part_sum
    mask = is_row[:, None] & (columns < N)[None, :]
    out_row = tl.program_id(2).to(tl.int64) * R + rows
    at = out_ptr + out_row[:, None] * N + columns[None, :]
    tl.store(at, total.to(out_ptr.dtype.element_ty), mask=mask)
