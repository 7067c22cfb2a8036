"""The convolution in C++ by Winograd's method, which needs a quarter of the multiplications in
fp32, and less than half in bf16."""

import functools

import torch
from torch import Tensor

from kernels import isa, native
from kernels.conv3x3.convolution import STRIP, Convolution


def supports(
    x: Tensor,
    convolution: Convolution,
    addend: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> bool:
    """Supports fp32 maps on the CPU, and bf16 ones where such numbers are multiplied in pairs. In
    written and added maps a cell's channels must lie side by side and cells evenly apart; inputs
    in other layouts are copied."""
    others = [given for given in (addend, out) if given is not None]
    return (
        x.dtype is convolution.weight.dtype
        and (x.dtype is torch.float32 or isa.multiplies_bf16())
        and all(given.dtype is x.dtype for given in others)
        and native.runs_on(x, *others)
        and all(_cell_stride(given) is not None for given in others)
    )


def conv3x3(
    x: Tensor,
    convolution: Convolution,
    addend: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """See `kernels.conv3x3`."""
    rows, inputs, height, width = x.shape
    if _cell_stride(x) is None:
        x = x.contiguous(memory_format=torch.channels_last)
    outputs = convolution.num_outputs
    if out is None:
        size = (rows, outputs, height, width)
        out = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
    transformed = convolution.transformed
    _function()(
        native.DTYPES[x.dtype],
        x.data_ptr(),
        _cell_stride(x),
        transformed.data_ptr(),
        convolution.bias.data_ptr(),
        convolution.slopes.data_ptr(),
        None if addend is None else addend.data_ptr(),
        0 if addend is None else _cell_stride(addend),
        scale,
        out.data_ptr(),
        _cell_stride(out),
        rows,
        height,
        width,
        inputs,
        transformed[0, 0].numel() // STRIP,
        outputs,
        transformed.shape[1],
    )
    return out


def _cell_stride(x: Tensor) -> int | None:
    """Return the distance between cells if it is the same everywhere, also from line to line;
    otherwise None."""
    rows, channels, height, width = x.shape
    of_row, of_channel, of_line, of_cell = x.stride()
    stride = of_cell if width > 1 else of_line if height > 1 else of_row if rows > 1 else channels
    is_even = (
        (channels == 1 or of_channel == 1)
        and (height == 1 or of_line == width * stride)
        and (rows == 1 or of_row == height * width * stride)
    )
    return stride if is_even else None


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_conv3x3", "ipippppifpiiiiiiii")
