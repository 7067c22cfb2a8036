"""Dequantises 32 weights of each output at a time in registers, then multiplies on tensor cores.

The sum's order depends on the weight's shape alone (`kernels/shared/triton_linear.py`). Integer
products with int8 activations are not here.
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
"""Four numbers to a word, the first in its lowest byte."""


def supports(
    x: Tensor,
    weight: Tensor,
    quant_type: GGUFType,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> bool:
    """GPU tensors whose last dimension is contiguous, as they are; fp16 scales can be loaded."""
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
            BLOCK_BYTES=BLOCKS[quant_type].num_bytes,
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
    BLOCK_BYTES: tl.constexpr,
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
    # The last weight again, past the end: what comes of it is not stored.
    column = tl.minimum(columns, N - 1).to(tl.int64)
    weight_rows = weight_ptr + column[None, :] * weight_row_bytes
    units_per_part = tiles_per_part * (TILE // UNIT)
    total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for part in range(PARTS):
        first = (tl.program_id(2) + part) * units_per_part
        last = tl.minimum(first + units_per_part, K // UNIT)
        part_sum = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for unit in range(first, last):
            x = tl.load(x_rows + unit * UNIT, mask=(rows < M)[:, None], other=0.0)
            if TYPE < 10 or TYPE == 20:
                weight = _legacy_weights(weight_rows + unit * BLOCK_BYTES, inner[:, None], TYPE)
            else:
                block = weight_rows + unit // 8 * BLOCK_BYTES
                weight = _k_weights(block, unit % 8, inner[:, None], TYPE)
            part_sum = tl.dot(x, weight.to(x.dtype), part_sum, input_precision="ieee")
        total += part_sum
    write(total, rows, columns, None, None, bias_ptr, out_ptr, M, N)


# The functions below take pointers to blocks, [1, BLOCK_N], and places in a run of 32 weights,
# [32, 1], and return these weights in fp32, [32, BLOCK_N]. `dequantize.py` says the same in words.


@triton.jit
def _byte(address):
    return tl.load(address).to(tl.int32)


@triton.jit
def _fp16(address):
    return tl.load(address.to(tl.pointer_type(tl.float16))).to(tl.float32)


@triton.jit
def _legacy_weights(block, inner, TYPE: tl.constexpr):
    """A block of Q4_0 (2), Q4_1 (3), Q5_0 (6), Q5_1 (7), Q8_0 (8) or IQ4_NL (20)."""
    HAS_MINIMUM: tl.constexpr = TYPE == 3 or TYPE == 7
    start: tl.constexpr = 4 if HAS_MINIMUM else 2
    if TYPE == 8:
        q = tl.load(block + start + inner).to(tl.int8, bitcast=True).to(tl.int32)
    elif TYPE == 20:
        q = _iq4_number(_byte(block + start + inner % 16) >> (inner // 16 * 4) & 15)
    elif TYPE < 6:
        q = _byte(block + start + inner % 16) >> (inner // 16 * 4) & 15
        q -= 0 if HAS_MINIMUM else 8
    else:
        low = _byte(block + start + 4 + inner % 16) >> (inner // 16 * 4) & 15
        high = _byte(block + start + inner // 8) >> (inner % 8) & 1
        q = low | (high << 4)
        q -= 0 if HAS_MINIMUM else 16
    weight = q.to(tl.float32) * _fp16(block)
    if HAS_MINIMUM:
        weight += _fp16(block + 2)
    return weight


@triton.jit
def _k_weights(block, run, inner, TYPE: tl.constexpr):
    """Run `run` (0 ... 7) of a block of Q2_K (10) ... Q6_K (14) or IQ4_XS (23)."""
    if TYPE == 10:
        q = _byte(block + 16 + run // 4 * 32 + inner) >> (run % 4 * 2) & 3
        # A byte for each 16 weights.
        packed = tl.where(inner < 16, _byte(block + run * 2), _byte(block + run * 2 + 1))
        scale = (packed & 15).to(tl.float32) * _fp16(block + 80)
        minimum = (packed >> 4).to(tl.float32) * _fp16(block + 82)
        weight = q.to(tl.float32) * scale - minimum
    elif TYPE == 11:
        low = _byte(block + 32 + run // 4 * 32 + inner) >> (run % 4 * 2) & 3
        high = _byte(block + inner) >> run & 1
        first, second = _q3_scale(block, run * 2), _q3_scale(block, run * 2 + 1)
        scale = tl.where(inner < 16, first, second).to(tl.float32) * _fp16(block + 108)
        weight = (low - 4 + high * 4).to(tl.float32) * scale
    elif TYPE == 14:
        half = run // 4
        low = _byte(block + half * 64 + run % 2 * 32 + inner) >> (run % 4 // 2 * 4) & 15
        high = _byte(block + 128 + half * 32 + inner) >> (run % 4 * 2) & 3
        first = tl.load(block + 192 + run * 2).to(tl.int8, bitcast=True)
        second = tl.load(block + 193 + run * 2).to(tl.int8, bitcast=True)
        scale = tl.where(inner < 16, first, second).to(tl.float32) * _fp16(block + 208)
        weight = ((low | high << 4) - 32).to(tl.float32) * scale
    elif TYPE == 23:
        q = _iq4_number(_byte(block + 8 + run * 16 + inner % 16) >> (inner // 16 * 4) & 15)
        low = _byte(block + 4 + run // 2) >> (run % 2 * 4) & 15
        high = _byte(block + 2 + run // 4) >> (run % 4 * 2) & 3
        scale = ((low | high << 4) - 32).to(tl.float32) * _fp16(block)
        weight = q.to(tl.float32) * scale
    else:
        start: tl.constexpr = 48 if TYPE == 13 else 16
        q = _byte(block + start + run // 2 * 32 + inner) >> (run % 2 * 4) & 15
        if TYPE == 13:
            q |= (_byte(block + 16 + inner) >> run & 1) << 4
        place = run % 4
        first_scales, first_minima = _byte(block + 4 + place), _byte(block + 8 + place)
        last = _byte(block + 12 + place)
        scale = tl.where(run < 4, first_scales & 63, (last & 15) | (first_scales >> 2 & 48))
        minimum = tl.where(run < 4, first_minima & 63, (last >> 4) | (first_minima >> 2 & 48))
        scale = scale.to(tl.float32) * _fp16(block)
        weight = q.to(tl.float32) * scale - minimum.to(tl.float32) * _fp16(block + 2)
    return weight


@triton.jit
def _q3_scale(block, run):
    low = _byte(block + 96 + run % 8) >> (run // 8 * 4) & 15
    high = _byte(block + 104 + run % 4) >> (run // 4 * 2) & 3
    return (low | high << 4) - 32


@triton.jit
def _iq4_number(code):
    """What a code of 4 bits stands for."""
    first, second = tl.where(code < 4, _IQ4_0, _IQ4_4), tl.where(code < 12, _IQ4_8, _IQ4_12)
    word = tl.where(code < 8, first, second)
    return (word >> code % 4 * 8).to(tl.int8).to(tl.int32)
