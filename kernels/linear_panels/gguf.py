"""Converts rows of a GGUF tensor to panels, exactly.

The first types keep their fp16 scales. A `_K` type's scale is the product of an fp16 number and an
integer of up to 8 bits, which fp32 holds exactly. Codes keep their bits; those of Q2_K and Q3_K get
four. Both IQ4 types have one format, with scales in fp32.
"""

import torch
from torch import Tensor

from kernels.linear_gguf.dequantize import OFFSETS, parts
from kernels.linear_gguf.quant_type import BLOCKS, GGUFType
from kernels.linear_panels.panels import LANES, Codes, Meaning, PanelFormat, Panels, pack

_CHUNK_WEIGHTS = 1 << 22
"""Weights converted at a time."""

_FP32 = torch.float32
_IQ4 = PanelFormat(bits=4, scale_dtype=_FP32, offset=128, meaning=Meaning.IQ4)
FORMATS = {
    GGUFType.Q4_0: PanelFormat(bits=4, offset=OFFSETS[GGUFType.Q4_0]),
    GGUFType.Q4_1: PanelFormat(bits=4, has_min=True),
    GGUFType.Q5_0: PanelFormat(bits=5, offset=OFFSETS[GGUFType.Q5_0]),
    GGUFType.Q5_1: PanelFormat(bits=5, has_min=True),
    GGUFType.Q8_0: PanelFormat(bits=8, offset=OFFSETS[GGUFType.Q8_0]),
    GGUFType.Q2_K: PanelFormat(bits=4, group=16, scale_dtype=_FP32, has_min=True),
    GGUFType.Q3_K: PanelFormat(bits=4, group=16, scale_dtype=_FP32, offset=OFFSETS[GGUFType.Q3_K]),
    GGUFType.Q4_K: PanelFormat(bits=4, scale_dtype=_FP32, has_min=True),
    GGUFType.Q5_K: PanelFormat(bits=5, scale_dtype=_FP32, has_min=True),
    GGUFType.Q6_K: PanelFormat(bits=6, group=16, scale_dtype=_FP32, offset=OFFSETS[GGUFType.Q6_K]),
    GGUFType.IQ4_NL: _IQ4,
    GGUFType.IQ4_XS: _IQ4,
}


def panels_from_gguf(weight: Tensor, quant_type: GGUFType) -> Panels:
    """Convert a GGUF tensor to panels.

    Args:
        weight: [N, bytes of a row] uint8, as in the file.
    """
    block = BLOCKS[quant_type]
    in_features = weight.shape[1] // block.num_bytes * block.num_weights
    step = max(1, _CHUNK_WEIGHTS // in_features // LANES) * LANES
    packed = [pack(gguf_codes(rows, quant_type)).data for rows in torch.split(weight, step)]
    return Panels(
        format=FORMATS[quant_type],
        out_features=weight.shape[0],
        in_features=in_features,
        data=torch.cat(packed),
    )


def gguf_codes(weight: Tensor, quant_type: GGUFType) -> Codes:
    """Split [N, bytes] into [N, K] codes with their scales and minima."""
    form = FORMATS[quant_type]
    codes, scales, mins = parts(weight, quant_type)
    rows = weight.shape[0]
    return Codes(
        format=form,
        codes=codes.reshape(rows, -1),
        scales=scales.to(form.scale_dtype).reshape(rows, -1),
        mins=None if mins is None else mins.to(form.scale_dtype).reshape(rows, -1),
    )
