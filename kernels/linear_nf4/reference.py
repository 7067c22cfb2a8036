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
    """See `kernels.linear_nf4`."""
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
