"""Three passes over channels-last maps: statistics of runs of cells, their sum, the result.

Means and squared deviations are computed per channel over short runs of cells and combined with
Chan's formula (Chan, Golub and LeVeque 1983), as `cpu.cpp` does: as exact as two passes over the
map, and the order of the sums depends on the map's size alone.
"""

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton

RUN = 128
"""Cells whose statistics one program computes."""
BLOCK_CHANNELS = 64
BLOCK_RUNS = 64
BLOCK_CELLS = 64


# Clients choose the size of a map, so sizes must not specialise kernels.
@triton.jit(do_not_specialize=["num_cells"])
def _group_norm_measure_kernel(
    x_ptr,
    mean_ptr,
    deviation_ptr,
    num_cells,
    num_channels,
    RUN: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    """Compute the mean of each row, run and channel, and the sum of squared deviations from it."""
    run = tl.program_id(0)
    row = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    has_channel = channel < num_channels
    cell = run * RUN + tl.arange(0, RUN)
    mask = (cell < num_cells)[:, None] & has_channel[None, :]
    at = (row * num_cells + cell)[:, None] * num_channels + channel[None, :]
    x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    length = tl.minimum(num_cells - run * RUN, RUN)
    mean = tl.sum(x, 0) / length
    distance = tl.where(mask, x - mean[None, :], 0.0)
    to = (row * tl.num_programs(0) + run) * num_channels + channel
    tl.store(mean_ptr + to, mean, has_channel)
    tl.store(deviation_ptr + to, tl.sum(distance * distance, 0), has_channel)


@triton.jit(do_not_specialize=["num_cells", "num_runs"])
def _group_norm_fold_kernel(
    mean_ptr,
    deviation_ptr,
    weight_ptr,
    bias_ptr,
    factor_ptr,
    summand_ptr,
    num_cells,
    num_runs,
    num_channels,
    eps,
    RUN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_RUNS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Turn the statistics of a row's group into a factor and a summand for each channel."""
    row = tl.program_id(1).to(tl.int64)
    column = tl.arange(0, BLOCK_WIDTH)
    has_channel = column < WIDTH
    channel = tl.program_id(0) * WIDTH + column
    count = num_cells.to(tl.float32) * WIDTH
    share = tl.zeros((BLOCK_RUNS, BLOCK_WIDTH), tl.float32)
    for start in range(0, num_runs, BLOCK_RUNS):
        run = start + tl.arange(0, BLOCK_RUNS)
        mask = (run < num_runs)[:, None] & has_channel[None, :]
        at = (row * num_runs + run)[:, None] * num_channels + channel[None, :]
        length = tl.minimum(num_cells - run * RUN, RUN).to(tl.float32)
        share += tl.load(mean_ptr + at, mask, other=0.0) * (length / count)[:, None]
    mean = tl.sum(tl.sum(share, 1), 0)
    square = tl.zeros((BLOCK_RUNS, BLOCK_WIDTH), tl.float32)
    for start in range(0, num_runs, BLOCK_RUNS):
        run = start + tl.arange(0, BLOCK_RUNS)
        mask = (run < num_runs)[:, None] & has_channel[None, :]
        at = (row * num_runs + run)[:, None] * num_channels + channel[None, :]
        length = tl.minimum(num_cells - run * RUN, RUN).to(tl.float32)
        distance = tl.load(mean_ptr + at, mask, other=0.0) - mean
        moved = tl.where(mask, length[:, None] * distance * distance, 0.0)
        square += tl.load(deviation_ptr + at, mask, other=0.0) + moved
    scale = 1.0 / tl.sqrt(tl.sum(tl.sum(square, 1), 0) / count + eps)
    factor = tl.load(weight_ptr + channel, has_channel, other=0.0).to(tl.float32) * scale
    bias = tl.load(bias_ptr + channel, has_channel, other=0.0).to(tl.float32)
    tl.store(factor_ptr + row * num_channels + channel, factor, has_channel)
    tl.store(summand_ptr + row * num_channels + channel, bias - mean * factor, has_channel)


@triton.jit(do_not_specialize=["num_cells"])
def _group_norm_apply_kernel(
    x_ptr,
    factor_ptr,
    summand_ptr,
    out_ptr,
    num_cells,
    num_channels,
    SILU: tl.constexpr,
    BLOCK_CELLS: tl.constexpr,
    BLOCK_CHANNELS: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    channel = tl.program_id(2) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    has_channel = channel < num_channels
    cell = tl.program_id(0) * BLOCK_CELLS + tl.arange(0, BLOCK_CELLS)
    mask = (cell < num_cells)[:, None] & has_channel[None, :]
    at = (row * num_cells + cell)[:, None] * num_channels + channel[None, :]
    factor = tl.load(factor_ptr + row * num_channels + channel, has_channel, other=0.0)
    summand = tl.load(summand_ptr + row * num_channels + channel, has_channel, other=0.0)
    x = tl.load(x_ptr + at, mask, other=0.0).to(tl.float32)
    y = x * factor[None, :] + summand[None, :]
    if SILU:
        # exp(-|y|) never overflows.
        e = tl.exp(-tl.abs(y))
        y *= tl.where(y < 0, e, 1.0) / (1.0 + e)
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask)


def supports(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool = True
) -> bool:
    """Supports CUDA tensors in channels-last layout."""
    return (
        _triton.runs_on(x, weight, bias)
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous()
        and bias.is_contiguous()
    )


def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool = True
) -> Tensor:
    """See `kernels.group_norm_silu`."""
    rows, channels, height, width = x.shape
    cells = height * width
    out = torch.empty_like(x, memory_format=torch.channels_last)
    if out.numel() == 0:
        return out
    runs, channel_blocks = triton.cdiv(cells, RUN), triton.cdiv(channels, BLOCK_CHANNELS)
    means, deviations = x.new_empty(2, rows, runs, channels, dtype=torch.float32)
    factors, summands = x.new_empty(2, rows, channels, dtype=torch.float32)
    _group_norm_measure_kernel[(runs, rows, channel_blocks)](
        x, means, deviations, cells, channels, RUN=RUN, BLOCK_CHANNELS=BLOCK_CHANNELS
    )
    _group_norm_fold_kernel[(num_groups, rows)](
        means,
        deviations,
        weight,
        bias,
        factors,
        summands,
        cells,
        runs,
        channels,
        eps,
        RUN=RUN,
        WIDTH=channels // num_groups,
        BLOCK_RUNS=BLOCK_RUNS,
        BLOCK_WIDTH=triton.next_power_of_2(channels // num_groups),
    )
    _group_norm_apply_kernel[(triton.cdiv(cells, BLOCK_CELLS), rows, channel_blocks)](
        x,
        factors,
        summands,
        out,
        cells,
        channels,
        SILU=silu,
        BLOCK_CELLS=BLOCK_CELLS,
        BLOCK_CHANNELS=BLOCK_CHANNELS,
    )
    return out
