"""Converts rows of a GGUF tensor to panels, exactly.

The first types keep their fp16 scales. A `_K` type's scale is the product of an fp16 number and an
integer of up to 8 bits, which fp32 holds exactly. Codes keep their bits; those of Q2_K and Q3_K get
four. Both IQ4 types have one format, with scales in fp32.
"""

import torch
from torch import Tensor

from kernels.linear_gguf.dequantize import bits_of, fp16, iq4_xs_scales, k_scales, split
from kernels.linear_gguf.quant_type import BLOCKS, GGUFType
from kernels.linear_panels.panels import LANES, Codes, Meaning, PanelFormat, Panels, pack

_CHUNK_WEIGHTS = 1 << 22
"""Weights converted at a time."""

_FP32 = torch.float32
_IQ4 = PanelFormat(bits=4, scale_dtype=_FP32, offset=128, meaning=Meaning.IQ4)
FORMATS = {
    GGUFType.Q4_0: PanelFormat(bits=4, offset=8),
    GGUFType.Q4_1: PanelFormat(bits=4, has_min=True),
    GGUFType.Q5_0: PanelFormat(bits=5, offset=16),
    GGUFType.Q5_1: PanelFormat(bits=5, has_min=True),
    GGUFType.Q8_0: PanelFormat(bits=8, offset=128),
    GGUFType.Q2_K: PanelFormat(bits=4, group=16, scale_dtype=_FP32, has_min=True),
    GGUFType.Q3_K: PanelFormat(bits=4, group=16, scale_dtype=_FP32, offset=4),
    GGUFType.Q4_K: PanelFormat(bits=4, scale_dtype=_FP32, has_min=True),
    GGUFType.Q5_K: PanelFormat(bits=5, scale_dtype=_FP32, has_min=True),
    GGUFType.Q6_K: PanelFormat(bits=6, group=16, scale_dtype=_FP32, offset=32),
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
    parts = [pack(gguf_codes(rows, quant_type)).data for rows in torch.split(weight, step)]
    return Panels(
        format=FORMATS[quant_type],
        out_features=weight.shape[0],
        in_features=in_features,
        data=torch.cat(parts),
    )


def gguf_codes(weight: Tensor, quant_type: GGUFType) -> Codes:
    """Split [N, bytes] into [N, K] codes with their scales and minima."""
    form = FORMATS[quant_type]
    blocks = weight.reshape(-1, BLOCKS[quant_type].num_bytes)
    codes, scales, mins = _PARTS[quant_type](blocks)
    rows = weight.shape[0]
    return Codes(
        format=form,
        codes=codes.reshape(rows, -1),
        scales=scales.to(form.scale_dtype).reshape(rows, -1),
        mins=None if mins is None else mins.to(form.scale_dtype).reshape(rows, -1),
    )


_Parts = tuple[Tensor, Tensor, Tensor | None]
"""The parts of blocks: [B, weights] codes, [B, groups] scales and minima."""


def _q4_0(blocks: Tensor) -> _Parts:
    return split(blocks[:, 2:], bits=4, span=16), fp16(blocks, 0), None


def _q4_1(blocks: Tensor) -> _Parts:
    return split(blocks[:, 4:], bits=4, span=16), fp16(blocks, 0), fp16(blocks, 2)


def _q5_0(blocks: Tensor) -> _Parts:
    low, high = split(blocks[:, 6:], bits=4, span=16), bits_of(blocks[:, 2:6])
    return low | high << 4, fp16(blocks, 0), None


def _q5_1(blocks: Tensor) -> _Parts:
    low, high = split(blocks[:, 8:], bits=4, span=16), bits_of(blocks[:, 4:8])
    return low | high << 4, fp16(blocks, 0), fp16(blocks, 2)


def _q8_0(blocks: Tensor) -> _Parts:
    # Adding 128 to a signed byte flips its highest bit.
    return blocks[:, 2:] ^ 128, fp16(blocks, 0), None


def _q2_k(blocks: Tensor) -> _Parts:
    packed = blocks[:, :16]
    scales = fp16(blocks, 80) * (packed & 15).float()
    mins = fp16(blocks, 82) * -(packed >> 4).float()
    return split(blocks[:, 16:80], bits=2, span=32), scales, mins


def _q3_k(blocks: Tensor) -> _Parts:
    low_scales = split(blocks[:, 96:104], bits=4, span=8)
    high_scales = split(blocks[:, 104:108], bits=2, span=4)
    scales = (low_scales | high_scales << 4).to(torch.int8) - 32
    low = split(blocks[:, 32:96], bits=2, span=32)
    high = split(blocks[:, :32], bits=1, span=32)
    return low | high << 2, fp16(blocks, 108) * scales.float(), None


def _q4_k(blocks: Tensor) -> _Parts:
    scales, minima = k_scales(blocks[:, 4:16])
    codes = split(blocks[:, 16:], bits=4, span=32)
    return codes, fp16(blocks, 0) * scales, fp16(blocks, 2) * -minima


def _q5_k(blocks: Tensor) -> _Parts:
    scales, minima = k_scales(blocks[:, 4:16])
    low = split(blocks[:, 48:], bits=4, span=32)
    high = split(blocks[:, 16:48], bits=1, span=32)
    return low | high << 4, fp16(blocks, 0) * scales, fp16(blocks, 2) * -minima


def _q6_k(blocks: Tensor) -> _Parts:
    low = split(blocks[:, :128], bits=4, span=64)
    high = split(blocks[:, 128:192], bits=2, span=32)
    scales = fp16(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return low | high << 4, scales, None


def _iq4_nl(blocks: Tensor) -> _Parts:
    return split(blocks[:, 2:], bits=4, span=16), fp16(blocks, 0), None


def _iq4_xs(blocks: Tensor) -> _Parts:
    return split(blocks[:, 8:], bits=4, span=16), iq4_xs_scales(blocks), None


_PARTS = {
    GGUFType.Q4_0: _q4_0,
    GGUFType.Q4_1: _q4_1,
    GGUFType.Q5_0: _q5_0,
    GGUFType.Q5_1: _q5_1,
    GGUFType.Q8_0: _q8_0,
    GGUFType.Q2_K: _q2_k,
    GGUFType.Q3_K: _q3_k,
    GGUFType.Q4_K: _q4_k,
    GGUFType.Q5_K: _q5_k,
    GGUFType.Q6_K: _q6_k,
    GGUFType.IQ4_NL: _iq4_nl,
    GGUFType.IQ4_XS: _iq4_xs,
}
