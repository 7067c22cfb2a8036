"""Panels in C++: fp32, pairs of bf16 from unpacked strips, or integers of 8 or 16 bits."""

import functools

import torch
from torch import Tensor

from kernels import native
from kernels.linear_panels.panels import BLOCK, Panels


def supports(
    x: Tensor,
    panels: Panels,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
    fp32_out: bool = False,
) -> bool:
    """Supports CPU tensors with contiguous elements in rows of x."""
    return (
        x.dim() == 2
        and (not int8_activations or panels.format.takes_int8_activations)
        and x.stride(1) == 1
        and (bias is None or bias.is_contiguous())
        and native.runs_on(x)
    )


def linear_panels(
    x: Tensor,
    panels: Panels,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
    fp32_out: bool = False,
) -> Tensor:
    """See `kernels.linear_panels`."""
    out = torch.empty(
        (x.shape[0], panels.out_features), dtype=torch.float32 if fp32_out else x.dtype
    )
    form = panels.format
    _function()(
        native.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        x.shape[0],
        panels.in_features // BLOCK,
        panels.data.data_ptr(),
        form.bits,
        form.group,
        form.scale_type,
        form.has_min,
        form.offset,
        form.meaning,
        int8_activations,
        None if bias is None else bias.data_ptr(),
        fp32_out,
        out.data_ptr(),
        panels.out_features,
    )
    return out


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_linear_panels", "ipiiipiiiiiiipipi")
