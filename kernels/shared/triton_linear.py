"""The common part of the Triton kernels of quantised products: tiles, and sums over parts of K.

The tiles along K, and the parts of several tiles that it is cut into, depend on the weight's shape
alone. With few rows the weight's bandwidth is the limit: a program sums one part, so that there are
enough programs, and `_sum_parts_kernel` adds the parts in order. With many rows a program sums all
parts, one after the other, and adds them in the same order. So a row's result does not depend on
the number of rows, if a `tl.dot` of more rows adds up like one of fewer. On sm_80 they are the same
instruction. On sm_90 and sm_100 up to 16 rows use another one than more rows do; that both add up
alike is not known until the tests have run there. If not, `plan` must give few rows the 64-row
tile.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels._triton import tl, triton
from kernels.shared.stages import dtype_name, num_stages

FEW_ROWS = 64
"""The most rows for which a program sums one part of K."""
WANTED_PROGRAMS = 512
"""The number of programs to reach, some for each of 132 processors. The same on every GPU, because
it decides the order of sums."""
MAX_PARTS = 8
MIN_TILES_PER_PART = 4
ROW_COUNT = ("M",)
"""Arguments that are not specialised, so that all numbers of rows, such as 1 or 16, share a kernel.
This costs nothing: only masks and the offsets of whole parts depend on it."""
SUM_BLOCK = 256
"""Outputs whose parts a program adds up."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The division of a [M, K] times [K, N] product."""

    block_m: int
    block_n: int
    num_parts: int
    tiles_per_part: int
    parts_per_program: int
    num_warps: int
    num_stages: int

    def grid(self, num_rows: int, num_outputs: int) -> tuple[int, int, int]:
        """Return the grid of programs: outputs vary fastest, so that programs that run together
        read the same rows of x."""
        return (
            triton.cdiv(num_outputs, self.block_n),
            triton.cdiv(num_rows, self.block_m),
            self.num_parts // self.parts_per_program,
        )

    @property
    def in_parts(self) -> bool:
        """Whether programs leave sums of parts for `_sum_parts_kernel`."""
        return self.num_parts > self.parts_per_program

    @property
    def constants(self) -> dict[str, int]:
        """Compile-time arguments of every kernel here."""
        return {
            "PARTS": self.parts_per_program,
            "BLOCK_M": self.block_m,
            "BLOCK_N": self.block_n,
        }

    @property
    def options(self) -> dict[str, int]:
        """Launch options of every kernel here."""
        return {"num_warps": self.num_warps, "num_stages": self.num_stages}

    def tuned_options(self, kernel: str, dtype: torch.dtype) -> dict[str, int]:
        """Return the launch options with the stages that were measured for a kernel and a type of
        x."""
        launch = f"{kernel} {dtype_name(dtype)} {self.block_m}x{self.block_n}"
        return self.options | {"num_stages": num_stages(launch, self.num_stages)}


def plan(num_rows: int, num_outputs: int, size: int, block_k: int, dtype: torch.dtype) -> Plan:
    """Divide a product of `num_rows` rows with a [num_outputs, size] weight."""
    wanted = WANTED_PROGRAMS // triton.cdiv(num_outputs, 32)
    num_parts, tiles_per_part = parts_of(triton.cdiv(size, block_k), min(wanted, MAX_PARTS))
    few = num_rows <= FEW_ROWS
    if dtype is torch.float32:
        # Without tensor cores; for tests more than for work.
        block_m, block_n, num_warps, stages = (16 if num_rows <= 16 else 32), 32, 4, 2
    elif num_rows <= 16:
        block_m, block_n, num_warps, stages = 16, 32, 4, 4
    elif few:
        block_m, block_n, num_warps, stages = 64, 64, 4, 3
    else:
        block_m, block_n, num_warps, stages = 128, 64, 8, 3
    return Plan(
        block_m=block_m,
        block_n=block_n,
        num_parts=num_parts,
        tiles_per_part=tiles_per_part,
        parts_per_program=1 if few else num_parts,
        num_warps=num_warps,
        num_stages=stages,
    )


def parts_of(num_tiles: int, most: int) -> tuple[int, int]:
    """Divide the tiles along K into at most `most` parts; return their number, and the tiles of
    each but the last."""
    num_parts = max(1, min(most, num_tiles // MIN_TILES_PER_PART))
    tiles_per_part = triton.cdiv(num_tiles, num_parts)
    # Rounding up may leave the last parts without a tile.
    return triton.cdiv(num_tiles, tiles_per_part), tiles_per_part


def runs_of(length: int, block_k: int) -> int:
    """Return the runs of `length` weights with one scale in a tile of `block_k`; 0 if they do not
    fit.

    The result is 1 if a run has several tiles.
    """
    if length % block_k == 0:
        return 1
    return block_k // length if block_k % length == 0 else 0


class Output:
    """The result of a launch, and the sums of the parts where programs do not add them up."""

    def __init__(
        self,
        cut: Plan,
        x: Tensor,
        num_outputs: int,
        sums: torch.dtype,
        *,
        num_rows: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """`dtype` is the result's; None for x's."""
        self._cut = cut
        shape = (x.shape[0] if num_rows is None else num_rows, num_outputs)
        self.result = torch.empty(shape, dtype=dtype or x.dtype, device=x.device)
        self._in_parts = cut.in_parts
        self.written = self.result
        if self._in_parts:
            shape = (cut.num_parts, *self.result.shape)
            self.written = torch.empty(shape, dtype=sums, device=x.device)

    def added_up(
        self, row_scale: Tensor | None, scale: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Return the result, once the kernel was launched. The arguments are those of `write`."""
        num_rows, num_outputs = self.result.shape
        if self._in_parts and num_rows:
            _sum_parts_kernel[(triton.cdiv(num_outputs, SUM_BLOCK), num_rows)](
                self.written,
                row_scale,
                scale,
                bias,
                self.result,
                num_rows,
                num_outputs,
                PARTS=self._cut.num_parts,
                BLOCK_SIZE=SUM_BLOCK,
            )
        return self.result


@triton.jit
def spread(values, BLOCK_K: tl.constexpr):
    """Repeat each row of [runs, BLOCK_N] to get `BLOCK_K` rows; a single run is not repeated."""
    RUNS: tl.constexpr = values.shape[0]
    BLOCK_N: tl.constexpr = values.shape[1]
    if RUNS > 1 and RUNS < BLOCK_K:
        longer = tl.broadcast_to(values[:, None, :], (RUNS, BLOCK_K // RUNS, BLOCK_N))
        values = tl.reshape(longer, (BLOCK_K, BLOCK_N))
    return values


@triton.jit
def finished(total, rows, columns, row_scale_ptr, scale_ptr, bias_ptr, M, N):
    """Apply scales and bias, each None if there is none, to a [rows, columns] tile in fp32."""
    value = total.to(tl.float32)
    if row_scale_ptr is not None:
        value *= tl.load(row_scale_ptr + rows, mask=rows < M, other=0.0)[:, None]
    if scale_ptr is not None:
        value *= tl.load(scale_ptr + columns, mask=columns < N, other=0.0)[None, :]
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + columns, mask=columns < N, other=0.0)
        value += bias.to(tl.float32)[None, :]
    return value


@triton.jit
def write(total, rows, columns, row_scale_ptr, scale_ptr, bias_ptr, out_ptr, M, N):
    """Store a tile: a part's sum if there are more parts, otherwise the result."""
    mask = (rows < M)[:, None] & (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    if tl.num_programs(2) > 1:
        out_ptr += tl.program_id(2).to(tl.int64) * M * N
        tl.store(out_ptr + at, total.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        value = finished(total, rows, columns, row_scale_ptr, scale_ptr, bias_ptr, M, N)
        tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=ROW_COUNT)
def _sum_parts_kernel(
    parts_ptr,
    row_scale_ptr,
    scale_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    PARTS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
    rows = tl.program_id(1) + tl.arange(0, 1)
    columns = tl.program_id(0) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    mask = (columns < N)[None, :]
    at = rows.to(tl.int64)[:, None] * N + columns[None, :]
    total = tl.load(parts_ptr + at, mask=mask, other=0)
    for part in tl.static_range(1, PARTS):
        offset = (tl.zeros((1,), tl.int64) + part) * M * N
        total += tl.load(parts_ptr + (offset[:, None] + at), mask=mask, other=0)
    value = finished(total, rows, columns, row_scale_ptr, scale_ptr, bias_ptr, M, N)
    tl.store(out_ptr + at, value.to(out_ptr.dtype.element_ty), mask=mask)
