"""Random weights in AWQ's layouts, packed as AutoAWQ does, and what they stand for.

The packing is written out number by number, and shares no code with what reads it.
"""

import math
from pathlib import Path

import torch

from tests.helpers.quantization.packed_folders import write_packed

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's order: which of eight outputs each nibble holds."""
GEMV_MULTIPLES = {64: 2, 32: 4}


def config(version="gemm", group_size=32, **changes):
    given = {"quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": True}
    return given | {"version": version} | changes


def packed(q, order):
    """[R, C] of 0 ... 15 → [R, C / 8] int32, number by number."""
    words = torch.zeros(q.shape[0], q.shape[1] // 8, dtype=torch.int32)
    for column in range(words.shape[1]):
        for nibble, place in enumerate(order):
            words[:, column] |= q[:, 8 * column + place].int() << 4 * nibble
    return words


def quantised(outputs, size, version="gemm", group_size=32, dtype=torch.float16, sym=False):
    """Quantise a layer. Returns its tensors by kind, and the weight [N, K] fp32 that they stand
    for."""
    run = size if group_size == -1 else group_size
    groups = math.ceil(size / run)
    q = torch.randint(0, 16, (size, outputs))
    zeros = torch.full((groups, outputs), 8) if sym else torch.randint(0, 16, (groups, outputs))
    scales = (torch.rand(groups, outputs) / size).add(1e-4).to(dtype)
    of_input = torch.arange(size) // run
    weight = ((q - zeros[of_input]) * scales.float()[of_input]).T.contiguous()
    if version == "gemm":
        tensors = {"qweight": packed(q, ORDER), "qzeros": packed(zeros, ORDER), "scales": scales}
        return tensors, weight
    multiple = GEMV_MULTIPLES.get(group_size, 1)
    width = math.ceil(math.ceil(groups / 8) / multiple) * multiple
    room = 8 * width - groups
    wide_zeros = torch.cat([zeros.T, torch.randint(0, 16, (outputs, room))], 1)
    wide_scales = torch.cat([scales.T, torch.zeros(outputs, room, dtype=dtype)], 1)
    tensors = {
        "qweight": packed(q.T, range(8)),
        "qzeros": packed(wide_zeros, range(8)),
        "scales": wide_scales.contiguous(),
    }
    return tensors, weight


def write_awq(original: Path, folder: Path) -> Path:
    """Write a model folder whose linear layers are random ones in AWQ's layout."""

    def quantise(layer, weight):
        return quantised(*weight.shape) if layer.endswith("_proj") else None

    return write_packed(original, folder, quantise, config())[0]
