"""Dequantises 32 weights of each output at a time in registers, then multiplies on tensor cores.

The sum's order depends on the weight's shape alone (`kernels/shared/triton_linear.py`). Integer
products with int8 activations are not implemented here.
"""

import struct

import torch
from torch import Tensor

from kernels import _triton
from kernels._triton import tl, triton
from kernels.linear_gguf.quant_type import BLOCKS, IQ4_NUMBERS, GGUFType
from kernels.shared.triton_linear import ROW_COUNT, Output, plan, write

TENSOR_CORES = ("_linear_gguf_kernel",)
TILE = 256
"""Weights of a tile along K, the unit in which K is cut into parts."""
_SCALE_BYTES = 2
_IQ4_0, _IQ4_4, _IQ4_8, _IQ4_12 = map(
    tl.constexpr, struct.unpack("<4i", struct.pack("<16b", *IQ4_NUMBERS))
)
"""The numbers of IQ4 codes, four to a word, the first in its lowest byte."""


def supports(
    x: Tensor,
    weight: Tensor,
    quant_type: GGUFType,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> bool:
    """Supports GPU tensors whose last dimension is contiguous and whose fp16 scales are aligned."""
    return (
        _triton.runs_on(x, weight)
        and not int8_activations
        and x.stride(1) == 1
        and weight.is_contiguous()
        and weight.data_ptr() % _SCALE_BYTES == 0
    )


def linear_gguf(
    x: Tensor,
    weight: Tensor,
    quant_type: GGUFType,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """See `kernels.linear_gguf`."""
    num_rows, size = x.shape
    num_outputs = weight.shape[0]
    cut = plan(num_rows, num_outputs, size, TILE, x.dtype)
    out = Output(cut, x, num_outputs, torch.float32)
    if num_rows:
        _linear_gguf_kernel[cut.grid(num_rows, num_outputs)](
            x,
            x.stride(0),
            weight,
            weight.shape[1],
            bias,
            out.written,
            num_rows,
            num_outputs,
            size,
            cut.tiles_per_part,
            TYPE=int(quant_type),
            BLOCK_WEIGHTS=BLOCKS[quant_type].num_weights,
            TILE=TILE,
            **cut.constants,
            **cut.tuned_options(f"linear_gguf {quant_type.name}", x.dtype),
        )
    return out.added_up(None, None, bias)


@triton.jit(do_not_specialize=ROW_COUNT)
def _linear_gguf_kernel(
    x_ptr,
    x_row_stride,
    weight_ptr,
    weight_row_bytes,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    tiles_per_part,
    TYPE: tl.constexpr,
    BLOCK_WEIGHTS: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    UNIT: tl.constexpr = 32
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.arange(0, UNIT)
    x_rows = x_ptr + rows.to(tl.int64)[:, None] * x_row_stride + inner[None, :]
    # Past the end the last weight is read again; the result is not stored.
    column = tl.minimum(columns, N - 1).to(tl.int64)
    weight_rows = weight_ptr + column[None, :] * weight_row_bytes
    num_blocks = K // BLOCK_WEIGHTS
    units_per_part = tiles_per_part * (TILE // UNIT)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in range(PARTS):
        first = (tl.program_id(2) + part) * units_per_part
        last = tl.minimum(first + units_per_part, K // UNIT)
        part_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for unit in range(first, last):
            x = tl.load(x_rows + unit * UNIT, mask=(rows < M)[:, None], other=0.0)
            weight = gguf_weights(weight_rows, num_blocks, unit, inner[:, None], TYPE)
            part_sum = tl.dot(x, weight.to(x.dtype), part_sum, input_precision="ieee")
        total += part_sum
    write(total, rows, columns, None, None, bias_ptr, out_ptr, M, N)


# The functions below take pointers to rows, [1, BLOCK_N], the number of blocks, and places in a run
# of 32 weights, [32, 1], and return the weights of a run in fp32, [32, BLOCK_N]. Fields are those
# of `BLOCKS`; `dequantize.py` describes their meaning.


@triton.jit
def gguf_weights(row, num_blocks, unit, inner, TYPE: tl.constexpr):
    """Return weights 32 · unit ... of a type that `GGUFType` numbers."""
    if TYPE < 10 or TYPE == 20:
        weight = _legacy_weights(row, num_blocks, unit, inner, TYPE)
    else:
        weight = _k_weights(row, num_blocks, unit // 8, unit % 8, inner, TYPE)
    return weight


@triton.jit
def _byte(address):
    return tl.load(address).to(tl.int32)


@triton.jit
def _fp16(address):
    return tl.load(address.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _legacy_weights(row, num_blocks, block, inner, TYPE: tl.constexpr):
    """Return weights of a block of Q4_0 (2), Q4_1 (3), Q5_0 (6), Q5_1 (7), Q8_0 (8) or IQ4_NL
    (20)."""
    HAS_MINIMUM: tl.constexpr = TYPE == 3 or TYPE == 7
    CODES: tl.constexpr = 32 if TYPE == 8 else 16
    HIGH_BITS: tl.constexpr = 4 if TYPE == 6 or TYPE == 7 else 0
    if TYPE == 8:
        q = tl.load(row + block * CODES + inner).to(tl.int8, bitcast=True).to(tl.int32)
    else:
        q = _byte(row + block * CODES + inner % 16) >> (inner // 16 * 4) & 15
        if HIGH_BITS > 0:
            high = row + CODES * num_blocks + block * HIGH_BITS
            q |= (_byte(high + inner // 8) >> (inner % 8) & 1) << 4
        if TYPE == 20:
            q = _iq4_number(q)
        elif not HAS_MINIMUM:
            q -= 16 if HIGH_BITS > 0 else 8
    factors = row + (CODES + HIGH_BITS) * num_blocks + block * (4 if HAS_MINIMUM else 2)
    weight = q.to(tl.float32) * _fp16(factors)
    if HAS_MINIMUM:
        weight += _fp16(factors + 2)
    return weight


@triton.jit
def _k_weights(row, num_blocks, block, run, inner, TYPE: tl.constexpr):
    """Return run `run` (0 ... 7) of a block of Q2_K (10) ... Q6_K (14) or IQ4_XS (23)."""
    if TYPE == 10:
        q = _byte(row + block * 64 + run // 4 * 32 + inner) >> (run % 4 * 2) & 3
        # A byte for each 16 weights.
        scales = row + 64 * num_blocks + block * 16 + run * 2
        factors = row + 80 * num_blocks + block * 4
        packed = tl.where(inner < 16, _byte(scales), _byte(scales + 1))
        scale = (packed & 15).to(tl.float32) * _fp16(factors)
        minimum = (packed >> 4).to(tl.float32) * _fp16(factors + 2)
        weight = q.to(tl.float32) * scale - minimum
    elif TYPE == 11:
        low = _byte(row + block * 64 + run // 4 * 32 + inner) >> (run % 4 * 2) & 3
        high = _byte(row + 64 * num_blocks + block * 32 + inner) >> run & 1
        scales = row + 96 * num_blocks + block * 12
        first, second = _q3_scale(scales, run * 2), _q3_scale(scales, run * 2 + 1)
        factor = _fp16(row + 108 * num_blocks + block * 2)
        scale = tl.where(inner < 16, first, second).to(tl.float32) * factor
        weight = (low - 4 + high * 4).to(tl.float32) * scale
    elif TYPE == 14:
        half = run // 4
        codes = row + block * 128 + half * 64 + run % 2 * 32
        low = _byte(codes + inner) >> (run % 4 // 2 * 4) & 15
        high_bits = row + 128 * num_blocks + block * 64 + half * 32
        high = _byte(high_bits + inner) >> (run % 4 * 2) & 3
        scales = row + 192 * num_blocks + block * 16 + run * 2
        first = tl.load(scales).to(tl.int8, bitcast=True)
        second = tl.load(scales + 1).to(tl.int8, bitcast=True)
        factor = _fp16(row + 208 * num_blocks + block * 2)
        scale = tl.where(inner < 16, first, second).to(tl.float32) * factor
        weight = ((low | high << 4) - 32).to(tl.float32) * scale
    elif TYPE == 23:
        codes = row + block * 128 + run * 16
        q = _iq4_number(_byte(codes + inner % 16) >> (inner // 16 * 4) & 15)
        low = _byte(row + 128 * num_blocks + block * 4 + run // 2) >> (run % 2 * 4) & 15
        high = _byte(row + 132 * num_blocks + block * 2 + run // 4) >> (run % 4 * 2) & 3
        factor = _fp16(row + 134 * num_blocks + block * 2)
        weight = q.to(tl.float32) * (((low | high << 4) - 32).to(tl.float32) * factor)
    else:
        # Q5_K has 32 bytes of high bits between codes and scales.
        HIGH_BITS: tl.constexpr = 32 if TYPE == 13 else 0
        q = _byte(row + block * 128 + run // 2 * 32 + inner) >> (run % 2 * 4) & 15
        if TYPE == 13:
            q |= (_byte(row + 128 * num_blocks + block * 32 + inner) >> run & 1) << 4
        scales = row + (128 + HIGH_BITS) * num_blocks + block * 12 + run % 4
        first_scales, first_minima = _byte(scales), _byte(scales + 4)
        last = _byte(scales + 8)
        scale = tl.where(run < 4, first_scales & 63, (last & 15) | (first_scales >> 2 & 48))
        minimum = tl.where(run < 4, first_minima & 63, (last >> 4) | (first_minima >> 2 & 48))
        factors = row + (140 + HIGH_BITS) * num_blocks + block * 4
        scale = scale.to(tl.float32) * _fp16(factors)
        weight = q.to(tl.float32) * scale - minimum.to(tl.float32) * _fp16(factors + 2)
    return weight


@triton.jit
def _q3_scale(scales, run):
    low = _byte(scales + run % 8) >> (run // 8 * 4) & 15
    high = _byte(scales + 8 + run % 4) >> (run // 4 * 2) & 3
    return (low | high << 4) - 32


@triton.jit
def _iq4_number(code):
    """Return the value of a 4-bit code."""
    first, second = tl.where(code < 4, _IQ4_0, _IQ4_4), tl.where(code < 12, _IQ4_8, _IQ4_12)
    word = tl.where(code < 8, first, second)
    return (word >> code % 4 * 8).to(tl.int8).to(tl.int32)
