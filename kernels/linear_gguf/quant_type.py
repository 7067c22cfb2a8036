"""The quantised tensor types of GGUF files that can be multiplied, and the layout of their
blocks."""

from dataclasses import dataclass
from enum import IntEnum


class GGUFType(IntEnum):
    """The types, with ggml's numbers."""

    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20
    IQ4_XS = 23


@dataclass(frozen=True, slots=True)
class Block:
    """Sizes of a block, the unit in which a row of weights is stored."""

    num_weights: int
    num_bytes: int
    scale_offsets: tuple[int, ...]
    """Byte offsets of the block's fp16 factors: the scale, then the minimum if there is one."""
    fields: tuple[tuple[int, int], ...]
    """First byte and size of each part of a block, the largest part first; see `fields_apart`."""

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, including scales and minima."""
        return 8 * self.num_bytes / self.num_weights


BLOCKS = {
    GGUFType.Q4_0: Block(32, 18, (0,), ((2, 16), (0, 2))),
    GGUFType.Q4_1: Block(32, 20, (0, 2), ((4, 16), (0, 4))),
    GGUFType.Q5_0: Block(32, 22, (0,), ((6, 16), (2, 4), (0, 2))),
    GGUFType.Q5_1: Block(32, 24, (0, 2), ((8, 16), (4, 4), (0, 4))),
    GGUFType.Q8_0: Block(32, 34, (0,), ((2, 32), (0, 2))),
    GGUFType.Q2_K: Block(256, 84, (80, 82), ((16, 64), (0, 16), (80, 4))),
    GGUFType.Q3_K: Block(256, 110, (108,), ((32, 64), (0, 32), (96, 12), (108, 2))),
    GGUFType.Q4_K: Block(256, 144, (0, 2), ((16, 128), (4, 12), (0, 4))),
    GGUFType.Q5_K: Block(256, 176, (0, 2), ((48, 128), (16, 32), (4, 12), (0, 4))),
    GGUFType.Q6_K: Block(256, 210, (208,), ((0, 128), (128, 64), (192, 16), (208, 2))),
    GGUFType.IQ4_NL: Block(32, 18, (0,), ((2, 16), (0, 2))),
    GGUFType.IQ4_XS: Block(256, 136, (0,), ((8, 128), (4, 4), (2, 2), (0, 2))),
}
IQ4_NUMBERS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""The values of the 4-bit codes of the IQ4 types."""


def row_bytes(quant_type: GGUFType, size: int) -> int:
    """Return the bytes of a row of `size` weights.

    Raises:
        ValueError: `size` is not a multiple of the block.
    """
    block = BLOCKS[quant_type]
    if size % block.num_weights:
        raise ValueError(
            f"{size} weights cannot be divided into {quant_type.name} blocks of {block.num_weights}"
        )
    return size // block.num_weights * block.num_bytes
