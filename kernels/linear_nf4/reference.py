"""The definition, in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.shared.four_bit_numbers import FP4, NF4


def linear_nf4(
    x: Tensor,
    weight: Tensor,
    absmax: Tensor,
    block_size: int,
    shape: tuple[int, int],
    bias: Tensor | None = None,
    *,
    fp4: bool = False,
) -> Tensor:
    """Multiply rows by an NF4 weight: `x @ dequantize(weight).T + bias`.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided.
        weight: uint8, contiguous, in any shape: the weight's elements row by row, two to a byte,
            the first in the high four bits; each an index into
            `kernels.shared.four_bit_numbers.NF4`.
        absmax: [ceil(N K / block_size)] fp32, the factor of each block's numbers. Where the
            checkpoint has quantised these too, `resolve_absmax` computes them.
        block_size: consecutive elements that share a magnitude; blocks may reach across rows.
        shape: (N, K).
        bias: [N], fp32 or x's dtype.
        fp4: whether the indices are into `FP4`.

    Returns:
        [M, N], contiguous, x's dtype; sums in fp32. An implementation on tensor cores may round the
            dequantised weight to x's dtype first.

    Paper: Dettmers et al. 2023, arXiv:2305.14314, sections 3 and E.
    """
    whole = dequantize(weight, absmax, block_size, shape, fp4=fp4)
    return F.linear(x.float(), whole, None if bias is None else bias.float()).to(x.dtype)


def dequantize(
    weight: Tensor, absmax: Tensor, block_size: int, shape: tuple[int, int], *, fp4: bool = False
) -> Tensor:
    """Dequantise the weight to [N, K] fp32."""
    packed = weight.flatten()
    # A last byte may hold only one weight.
    index = torch.stack([packed >> 4, packed & 15], dim=1).flatten()[: shape[0] * shape[1]]
    values = torch.tensor(FP4 if fp4 else NF4, device=packed.device)[index.int()]
    return (values * absmax.repeat_interleave(block_size)[: len(values)]).view(shape)


def resolve_absmax(
    absmax: Tensor,
    nested_absmax: Tensor,
    nested_code: Tensor,
    nested_block_size: int,
    offset: float,
) -> Tensor:
    """Undo double quantisation: compute a block's fp32 magnitude from its 8-bit code.

    Args:
        absmax: [blocks] uint8, indices into `nested_code`.
        nested_absmax: [blocks / nested_block_size, rounded up] fp32.
        nested_code: [256] fp32.
        offset: the mean of all magnitudes, which was subtracted before.

    Returns:
        [blocks] fp32.
    """
    places = torch.arange(len(absmax), device=absmax.device) // nested_block_size
    return nested_code[absmax.int()] * nested_absmax[places] + offset
