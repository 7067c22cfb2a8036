"""Tiles of sums in registers, in C++; with the processor's matrix unit where it has one."""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import native
from kernels.linear_packed.packed_weight import PackedWeight


def supports(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, fp32_out: bool = False
) -> bool:
    """Supports rows of contiguous numbers of the weight's dtype."""
    return x.stride(1) == 1 and native.runs_on(x, weight.data)


def linear_packed(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, fp32_out: bool = False
) -> Tensor:
    """See `kernels.linear_packed`."""
    if weight.padded_inputs != weight.in_features:
        x = F.pad(x, (0, weight.padded_inputs - weight.in_features))
    rows, data, outputs = x.shape[0], weight.data, weight.out_features
    out = torch.empty((rows, outputs), dtype=torch.float32 if fp32_out else x.dtype)
    _function()(
        native.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        data.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows,
        weight.padded_inputs,
        data.shape[0],
        outputs,
        fp32_out,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_linear_packed", "ipipppiiiii")
