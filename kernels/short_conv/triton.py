"""The convolution with one program per block of channels of a sequence."""

from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.shared.recurrent_batch import RecurrentBatch

BLOCK = 128
"""Channels per program."""


@triton.jit
def _short_conv_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    states_ptr,
    offsets_ptr,
    reads_ptr,
    writes_ptr,
    out_ptr,
    x_stride,
    size,
    HAS_BIAS: tl.constexpr,
    SILU: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """`last` holds the WIDTH - 1 inputs before a row in its first columns."""
    sequence, part = tl.program_id(0), tl.program_id(1)
    channel = part * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, PADDED)
    is_channel = channel < size
    first, end = tl.load(offsets_ptr + sequence), tl.load(offsets_ptr + sequence + 1)
    read = tl.load(reads_ptr + sequence).to(tl.int64)
    write = tl.load(writes_ptr + sequence).to(tl.int64)
    at = channel[:, None] * (WIDTH - 1) + column[None, :]
    held = is_channel[:, None] & (column[None, :] < WIDTH - 1)
    from_slot = states_ptr + tl.maximum(read, 0) * size * (WIDTH - 1) + at
    last = tl.where(read >= 0, tl.load(from_slot, held, other=0.0).to(tl.float32), 0.0)
    weight = tl.load(
        weight_ptr + channel[:, None] * WIDTH + column[None, :],
        is_channel[:, None] & (column[None, :] < WIDTH),
        other=0.0,
    )
    bias = tl.zeros([BLOCK], tl.float32)
    if HAS_BIAS:
        bias = tl.load(bias_ptr + channel, is_channel, other=0.0)
    is_new = column[None, :] == WIDTH - 1
    # A column moves to its left neighbour: a product with a matrix of ones beside the diagonal.
    moves = (column[:, None] == column[None, :] + 1).to(tl.float32)
    row = first.to(tl.int64)
    for _ in range(first, end):
        new = tl.load(x_ptr + row * x_stride + channel, is_channel, other=0.0)
        window = tl.where(is_new, new.to(tl.float32)[:, None], last)
        mixed = tl.sum(window * weight, 1) + bias
        if SILU:
            mixed = mixed / (1.0 + tl.exp(-mixed))
        tl.store(
            out_ptr + row * size + channel,
            mixed.to(out_ptr.dtype.element_ty),
            is_channel,
        )
        last = tl.sum(window[:, :, None] * moves[None, :, :], 1)
        row += 1
    tl.store(
        states_ptr + write * size * (WIDTH - 1) + at, last.to(states_ptr.dtype.element_ty), held
    )


def supports(
    x: Tensor,
    weight: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    bias: Tensor | None = None,
    silu: bool = True,
) -> bool:
    """Supports CUDA tensors with contiguous rows."""
    return _triton.runs_on(x, states) and x.stride(1) == 1 and weight.is_contiguous()


def short_conv(
    x: Tensor,
    weight: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    bias: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """See `kernels.short_conv`."""
    size, width = weight.shape
    out = x.new_empty(x.shape)
    if batch.num_sequences == 0:
        return out
    _short_conv_kernel[(batch.num_sequences, triton.cdiv(size, BLOCK))](
        x,
        weight,
        bias,
        states,
        batch.cu_seqlens_q,
        batch.read_slots,
        batch.write_slots,
        out,
        x.stride(0),
        size,
        HAS_BIAS=bias is not None,
        SILU=silu,
        WIDTH=width,
        PADDED=triton.next_power_of_2(width),
        BLOCK=BLOCK,
    )
    return out
