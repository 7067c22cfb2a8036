"""Converts rows of a GGUF tensor to panels, exactly.

Most types keep their fp16 scales, the `_K` types and IQ4_XS their factors and integers of up to 8
bits. Codes keep their bits; those of Q2_K and Q3_K get four.
"""

import functools

import torch
from torch import Tensor

from kernels import native
from kernels.linear_gguf.dequantize import OFFSETS, parts
from kernels.linear_gguf.quant_type import BLOCKS, GGUFType
from kernels.linear_panels.panels import (
    BLOCK,
    LANES,
    Codes,
    Meaning,
    PanelFormat,
    Panels,
    pack_in_parts,
)

_INT8 = torch.int8
FORMATS = {
    GGUFType.Q4_0: PanelFormat(bits=4, offset=OFFSETS[GGUFType.Q4_0]),
    GGUFType.Q4_1: PanelFormat(bits=4, has_min=True),
    GGUFType.Q5_0: PanelFormat(bits=5, offset=OFFSETS[GGUFType.Q5_0]),
    GGUFType.Q5_1: PanelFormat(bits=5, has_min=True),
    GGUFType.Q8_0: PanelFormat(bits=8, offset=OFFSETS[GGUFType.Q8_0]),
    GGUFType.Q2_K: PanelFormat(bits=4, group=16, scale_dtype=_INT8, has_min=True),
    GGUFType.Q3_K: PanelFormat(bits=4, group=16, scale_dtype=_INT8, offset=OFFSETS[GGUFType.Q3_K]),
    GGUFType.Q4_K: PanelFormat(bits=4, scale_dtype=_INT8, has_min=True),
    GGUFType.Q5_K: PanelFormat(bits=5, scale_dtype=_INT8, has_min=True),
    GGUFType.Q6_K: PanelFormat(bits=6, group=16, scale_dtype=_INT8, offset=OFFSETS[GGUFType.Q6_K]),
    GGUFType.IQ4_NL: PanelFormat(bits=4, offset=128, meaning=Meaning.IQ4),
    GGUFType.IQ4_XS: PanelFormat(bits=4, scale_dtype=_INT8, offset=128, meaning=Meaning.IQ4),
}


def panels_from_gguf(weight: Tensor, quant_type: GGUFType) -> Panels:
    """Convert a GGUF tensor to panels.

    Args:
        weight: [N, bytes of a row] uint8, as in the file.
    """
    if native.library() is None or not weight.is_cpu or weight.stride(1) != 1:
        return panels_by_torch(weight, quant_type)
    form, outputs = FORMATS[quant_type], weight.shape[0]
    in_features = _in_features(weight, quant_type)
    num_records, panel_bytes = in_features // BLOCK, form.panel_bytes(in_features)
    data = torch.empty(-(-outputs // LANES), panel_bytes, dtype=torch.uint8)
    given = int(quant_type), weight.data_ptr(), weight.stride(0)
    _function()(*given, outputs, num_records, data.data_ptr(), panel_bytes)
    return Panels(format=form, out_features=outputs, in_features=in_features, data=data)


def panels_by_torch(weight: Tensor, quant_type: GGUFType) -> Panels:
    """The reference of `gguf.cpp`: the same panels, by operations of PyTorch."""
    return pack_in_parts(
        weight.shape[0],
        _in_features(weight, quant_type),
        lambda some: gguf_codes(weight[some], quant_type),
    )


def _in_features(weight: Tensor, quant_type: GGUFType) -> int:
    block = BLOCKS[quant_type]
    return weight.shape[1] // block.num_bytes * block.num_weights


@functools.cache
def _function() -> native.Function:
    return native.function("tandem_panels_from_gguf", "ipiiipi")


def gguf_codes(weight: Tensor, quant_type: GGUFType) -> Codes:
    """Split [N, bytes] into [N, K] codes with their scales, minima and factors."""
    form = FORMATS[quant_type]
    codes, *numbers = parts(weight, quant_type)
    rows = weight.shape[0]
    types = form.scale_dtype, form.scale_dtype, torch.float16
    scales, mins, factors = (
        None if one is None else one.to(dtype).reshape(rows, -1)
        for one, dtype in zip(numbers, types, strict=True)
    )
    assert scales is not None
    return Codes(
        format=form, codes=codes.reshape(rows, -1), scales=scales, mins=mins, factors=factors
    )
