"""The meaning of a GGUF block's bytes, written to be read.

Each function takes blocks [B, bytes] and returns [B, weights] fp32, in the order and with the
roundings of ggml, with the same bits as `gguf.quants.dequantize`. `q` is the small integer of a
weight; `low` and `high` are the bits that its block stores separately.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

import torch
from torch import Tensor

from kernels.linear_gguf.quant_type import BLOCKS, IQ4_NUMBERS, GGUFType


def dequantize(weight: Tensor, quant_type: GGUFType) -> Tensor:
    """Dequantise rows of blocks: [N, bytes] uint8 → [N, K] fp32."""
    blocks = weight.reshape(-1, BLOCKS[quant_type].num_bytes)
    return _FUNCTIONS[quant_type](blocks).reshape(weight.shape[0], -1)


def fp16(blocks: Tensor, offset: int) -> Tensor:
    """Read the fp16 number at a byte → [B, 1] fp32."""
    return blocks[:, offset : offset + 2].contiguous().view(torch.float16).float()


def split(packed: Tensor, bits: int, span: int) -> Tensor:
    """Split each `span` bytes into numbers: their lowest `bits` bits first, then the next ones.

    [B, bytes] → [B, bytes * 8 / bits]: `span` numbers, then `span` from the same bytes, and so on.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    spans = packed.reshape(packed.shape[0], -1, 1, span)
    return ((spans >> shifts) & ((1 << bits) - 1)).flatten(1)


def bits_of(packed: Tensor) -> Tensor:
    """Return every bit of every byte, the lowest first: [B, bytes] → [B, bytes * 8]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)


def _times(scales: Tensor, q: Tensor) -> Tensor:
    """Multiply each run of weights by its scale: [B, runs] and [B, weights]."""
    return q.float() * scales.repeat_interleave(q.shape[1] // scales.shape[1], dim=1)


def _minus(weights: Tensor, minima: Tensor) -> Tensor:
    """Subtract its minimum from each run of weights: [B, weights] and [B, runs]."""
    return weights - minima.repeat_interleave(weights.shape[1] // minima.shape[1], dim=1)


def _q4_0(blocks: Tensor) -> Tensor:
    q = split(blocks[:, 2:], bits=4, span=16).to(torch.int8) - 8
    return _times(fp16(blocks, 0), q)


def _q4_1(blocks: Tensor) -> Tensor:
    return _times(fp16(blocks, 0), split(blocks[:, 4:], bits=4, span=16)) + fp16(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    low, high = split(blocks[:, 6:], bits=4, span=16), bits_of(blocks[:, 2:6])
    return _times(fp16(blocks, 0), (low | high << 4).to(torch.int8) - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    low, high = split(blocks[:, 8:], bits=4, span=16), bits_of(blocks[:, 4:8])
    return _times(fp16(blocks, 0), low | high << 4) + fp16(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _times(fp16(blocks, 0), blocks[:, 2:].view(torch.int8))


def _q2_k(blocks: Tensor) -> Tensor:
    """16 runs of 16 weights; a byte holds a run's 4-bit scale and, above it, its minimum."""
    packed = blocks[:, :16]
    scales = fp16(blocks, 80) * (packed & 15).float()
    minima = fp16(blocks, 82) * (packed >> 4).float()
    return _minus(_times(scales, split(blocks[:, 16:80], bits=2, span=32)), minima)


def _q3_k(blocks: Tensor) -> Tensor:
    """16 runs of 16 weights with 6-bit scales around 32; a high bit of 0 means minus 4."""
    low_scales = split(blocks[:, 96:104], bits=4, span=8)
    high_scales = split(blocks[:, 104:108], bits=2, span=4)
    scales = (low_scales | high_scales << 4).to(torch.int8) - 32
    low = split(blocks[:, 32:96], bits=2, span=32).to(torch.int8)
    high = split(blocks[:, :32], bits=1, span=32).to(torch.int8)
    return _times(fp16(blocks, 108) * scales.float(), low - 4 * (1 - high))


def k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """6-bit scales and minima of eight runs, from the 12 bytes of a Q4_K or Q5_K block.

    The first four of each are the low six bits of a byte; the last four have their low four bits
    in a byte of their own, and their high two on top of the first four.
    """
    first_scales, first_minima, last = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    last_scales = (last & 15) | (first_scales >> 2 & 0x30)
    last_minima = (last >> 4) | (first_minima >> 2 & 0x30)
    scales = torch.cat([first_scales & 63, last_scales], dim=1)
    minima = torch.cat([first_minima & 63, last_minima], dim=1)
    return scales.float(), minima.float()


def _q4_k(blocks: Tensor) -> Tensor:
    scales, minima = k_scales(blocks[:, 4:16])
    q = split(blocks[:, 16:], bits=4, span=32)
    return _minus(_times(fp16(blocks, 0) * scales, q), fp16(blocks, 2) * minima)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, minima = k_scales(blocks[:, 4:16])
    low = split(blocks[:, 48:], bits=4, span=32)
    high = split(blocks[:, 16:48], bits=1, span=32)
    q = low | high << 4
    return _minus(_times(fp16(blocks, 0) * scales, q), fp16(blocks, 2) * minima)


def _q6_k(blocks: Tensor) -> Tensor:
    """16 runs of 16 weights with int8 scales; 64 bytes hold the low bits of 128 weights."""
    low = split(blocks[:, :128], bits=4, span=64)
    high = split(blocks[:, 128:192], bits=2, span=32)
    scales = fp16(blocks, 208) * blocks[:, 192:208].view(torch.int8).float()
    return _times(scales, (low | high << 4).to(torch.int8) - 32)


def _iq4_nl(blocks: Tensor) -> Tensor:
    return _times(fp16(blocks, 0), _iq4_numbers(split(blocks[:, 2:], bits=4, span=16)))


def iq4_xs_scales(blocks: Tensor) -> Tensor:
    """Return the scales [B, 8] of runs of 32 weights: a block's factor times integers of 6 bits
    around 32, whose high two bits are stored separately."""
    low, high = split(blocks[:, 4:8], bits=4, span=1), split(blocks[:, 2:4], bits=2, span=1)
    return fp16(blocks, 0) * ((low | high << 4).to(torch.int8) - 32).float()


def _iq4_xs(blocks: Tensor) -> Tensor:
    return _times(iq4_xs_scales(blocks), _iq4_numbers(split(blocks[:, 8:], bits=4, span=16)))


def _iq4_numbers(codes: Tensor) -> Tensor:
    return torch.tensor(IQ4_NUMBERS, dtype=torch.int8, device=codes.device)[codes.int()]


_FUNCTIONS = {
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
