"""The order in which a GPU reads GGUF blocks.

A block has codes, scales and more side by side, and a size such as 34 or 210 bytes, so hardly any
block starts where many bytes can be loaded at once. In separate fields, each kind starts at a
multiple of its own size. No byte is added or changed.
"""

import torch
from torch import Tensor

from kernels.linear_gguf.quant_type import BLOCKS, GGUFType


def fields_apart(rows: Tensor, quant_type: GGUFType) -> Tensor:
    """Reorder [N, bytes of a row] uint8 of a file: the first field (`Block.fields`) of all blocks
    of a row, then the second of all, and so on."""
    block = BLOCKS[quant_type]
    blocks = rows.view(len(rows), -1, block.num_bytes)
    parts = [blocks[:, :, first : first + size].flatten(1) for first, size in block.fields]
    return torch.cat(parts, 1)


def fields_together(weight: Tensor, quant_type: GGUFType) -> Tensor:
    """The inverse of `fields_apart`."""
    block = BLOCKS[quant_type]
    num_blocks = weight.shape[1] // block.num_bytes
    rows = torch.empty_like(weight)
    blocks = rows.view(len(rows), num_blocks, block.num_bytes)
    parts = torch.split(weight, [num_blocks * size for _, size in block.fields], 1)
    for (first, size), part in zip(block.fields, parts, strict=True):
        blocks[:, :, first : first + size] = part.view(len(rows), num_blocks, size)
    return rows
