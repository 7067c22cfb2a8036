"""The meaning of a GGUF block's bytes, written to be read.

A weight is `scale * (code - offset) + minimum`; its scale and minimum belong to a run of weights.
The codes of both IQ4 types are places in `IQ4_NUMBERS` instead. `low` and `high` are the bits of
codes that a block stores separately. Results have the order and the roundings of ggml, and the same
bits as `gguf.quants.dequantize`.

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.linear_gguf.quant_type import BLOCKS, IQ4_NUMBERS, GGUFType

OFFSETS = {
    GGUFType.Q4_0: 8,
    GGUFType.Q5_0: 16,
    GGUFType.Q8_0: 128,
    GGUFType.Q3_K: 4,
    GGUFType.Q6_K: 32,
}
"""The numbers that are subtracted from codes, where they are not 0."""


class Parts(NamedTuple):
    """The parts of B blocks."""

    codes: Tensor
    """[B, weights] uint8."""
    scales: Tensor
    """[B, runs] fp32, or int8 if they are multiplied by the block's factor."""
    minima: Tensor | None = None
    """The same for minima."""
    factors: Tensor | None = None
    """[B, 1] fp32, the factor of the block's scales, or [B, 2] with that of its minima."""

    def products(self) -> tuple[Tensor, Tensor | None]:
        """Return the scales and minima in fp32, which holds every product exactly."""
        scales, minima = self.scales.float(), self.minima
        if self.factors is not None:
            scales = self.factors[:, :1] * scales
            minima = None if minima is None else self.factors[:, 1:] * minima.float()
        return scales, minima


def dequantize(weight: Tensor, quant_type: GGUFType) -> Tensor:
    """Dequantise rows of blocks: [N, bytes] uint8 → [N, K] fp32."""
    blocks = parts(weight, quant_type)
    scales, minima = blocks.products()
    run = blocks.codes.shape[1] // scales.shape[1]
    weights = _numbers(blocks.codes, quant_type).float() * scales.repeat_interleave(run, dim=1)
    if minima is not None:
        weights = weights + minima.repeat_interleave(run, dim=1)
    return weights.reshape(weight.shape[0], -1)


def parts(weight: Tensor, quant_type: GGUFType) -> Parts:
    """Split rows of blocks into their parts."""
    return _PARTS[quant_type](weight.reshape(-1, BLOCKS[quant_type].num_bytes))


def _numbers(codes: Tensor, quant_type: GGUFType) -> Tensor:
    """Return the int8 number of each code."""
    if quant_type in (GGUFType.IQ4_NL, GGUFType.IQ4_XS):
        return torch.tensor(IQ4_NUMBERS, dtype=torch.int8, device=codes.device)[codes.int()]
    # Differences below 0 wrap around, which a signed byte reads as they are meant.
    return (codes - OFFSETS.get(quant_type, 0)).view(torch.int8)


def _fp16(blocks: Tensor, offset: int) -> Tensor:
    """Read the fp16 number at a byte → [B, 1] fp32."""
    return _fp16s(blocks, offset, 1)


def _fp16s(blocks: Tensor, offset: int, count: int) -> Tensor:
    """Read neighbouring fp16 numbers, the first of them at a byte → [B, count] fp32."""
    return blocks[:, offset : offset + 2 * count].contiguous().view(torch.float16).float()


def _split(packed: Tensor, bits: int, span: int) -> Tensor:
    """Split each `span` bytes into numbers: their lowest `bits` bits first, then the next ones.

    [B, bytes] → [B, bytes * 8 / bits]: `span` numbers, then `span` from the same bytes, and so on.
    """
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)[:, None]
    spans = packed.reshape(packed.shape[0], -1, 1, span)
    return ((spans >> shifts) & ((1 << bits) - 1)).flatten(1)


def _bits_of(packed: Tensor) -> Tensor:
    """Return every bit of every byte, the lowest first: [B, bytes] → [B, bytes * 8]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return ((packed[:, :, None] >> shifts) & 1).flatten(1)


def _q4_0(blocks: Tensor) -> Parts:
    return Parts(_split(blocks[:, 2:], bits=4, span=16), _fp16(blocks, 0))


def _q4_1(blocks: Tensor) -> Parts:
    return Parts(_split(blocks[:, 4:], bits=4, span=16), _fp16(blocks, 0), _fp16(blocks, 2))


def _q5_0(blocks: Tensor) -> Parts:
    low, high = _split(blocks[:, 6:], bits=4, span=16), _bits_of(blocks[:, 2:6])
    return Parts(low | high << 4, _fp16(blocks, 0))


def _q5_1(blocks: Tensor) -> Parts:
    low, high = _split(blocks[:, 8:], bits=4, span=16), _bits_of(blocks[:, 4:8])
    return Parts(low | high << 4, _fp16(blocks, 0), _fp16(blocks, 2))


def _q8_0(blocks: Tensor) -> Parts:
    # Adding 128 to a signed byte flips its highest bit.
    return Parts(blocks[:, 2:] ^ 128, _fp16(blocks, 0))


def _q2_k(blocks: Tensor) -> Parts:
    """16 runs of 16 weights; a byte holds a run's 4-bit scale and, above it, its minimum."""
    packed = blocks[:, :16].view(torch.int8)
    scales, minima = packed & 15, -(packed >> 4 & 15)
    codes = _split(blocks[:, 16:80], bits=2, span=32)
    return Parts(codes, scales, minima, _fp16s(blocks, 80, 2))


def _q3_k(blocks: Tensor) -> Parts:
    """16 runs of 16 weights with 6-bit scales around 32; a high bit of 0 means minus 4."""
    low_scales = _split(blocks[:, 96:104], bits=4, span=8)
    high_scales = _split(blocks[:, 104:108], bits=2, span=4)
    scales = (low_scales | high_scales << 4).to(torch.int8) - 32
    low = _split(blocks[:, 32:96], bits=2, span=32)
    high = _split(blocks[:, :32], bits=1, span=32)
    return Parts(low | high << 2, scales, factors=_fp16(blocks, 108))


def _k_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """6-bit scales and minima of eight runs, int8, from the 12 bytes of a Q4_K or Q5_K block.

    The first four of each are the low six bits of a byte; the last four have their low four bits
    in a byte of their own, and their high two on top of the first four.
    """
    first_scales, first_minima, last = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    last_scales = (last & 15) | (first_scales >> 2 & 0x30)
    last_minima = (last >> 4) | (first_minima >> 2 & 0x30)
    scales = torch.cat([first_scales & 63, last_scales], dim=1)
    minima = torch.cat([first_minima & 63, last_minima], dim=1)
    return scales.view(torch.int8), -minima.view(torch.int8)


def _q4_k(blocks: Tensor) -> Parts:
    scales, minima = _k_scales(blocks[:, 4:16])
    codes = _split(blocks[:, 16:], bits=4, span=32)
    return Parts(codes, scales, minima, _fp16s(blocks, 0, 2))


def _q5_k(blocks: Tensor) -> Parts:
    scales, minima = _k_scales(blocks[:, 4:16])
    low = _split(blocks[:, 48:], bits=4, span=32)
    high = _split(blocks[:, 16:48], bits=1, span=32)
    return Parts(low | high << 4, scales, minima, _fp16s(blocks, 0, 2))


def _q6_k(blocks: Tensor) -> Parts:
    """16 runs of 16 weights with int8 scales; 64 bytes hold the low bits of 128 weights."""
    low = _split(blocks[:, :128], bits=4, span=64)
    high = _split(blocks[:, 128:192], bits=2, span=32)
    scales = blocks[:, 192:208].view(torch.int8)
    return Parts(low | high << 4, scales, factors=_fp16(blocks, 208))


def _iq4_nl(blocks: Tensor) -> Parts:
    return Parts(_split(blocks[:, 2:], bits=4, span=16), _fp16(blocks, 0))


def _iq4_xs_scales(blocks: Tensor) -> Tensor:
    """Return the scales [B, 8] int8 of runs of 32 weights: integers of 6 bits around 32, whose high
    two bits are stored separately."""
    low, high = _split(blocks[:, 4:8], bits=4, span=1), _split(blocks[:, 2:4], bits=2, span=1)
    return (low | high << 4).view(torch.int8) - 32


def _iq4_xs(blocks: Tensor) -> Parts:
    codes = _split(blocks[:, 8:], bits=4, span=16)
    return Parts(codes, _iq4_xs_scales(blocks), factors=_fp16(blocks, 0))


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
