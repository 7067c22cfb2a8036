"""The definition, in fp32."""

import torch
from torch import Tensor

from kernels.linear_w4a16.layouts import unpack

SYMMETRIC_ZERO = 8


def linear_w4a16(
    x: Tensor,
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Multiply rows by a 4-bit weight: weight k, n is `(q - zeros[g, n]) * scales[g, n]`.

    `layouts` converts the tensors of GPTQ (v1, v2) and AWQ checkpoints to this form.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided.
        qweight: [K / 8, N] int32, contiguous; q of input 8 i + j is bits 4 j ... 4 j + 3 of row i.
        scales: [G, N], any float dtype, contiguous; G = ceil(K / group_size).
        zeros: [G, N] uint8, contiguous; None: 8 everywhere (symmetric).
        group_size: consecutive inputs that share a scale; K for a scale per output.
        g_idx: [K] int32, each input's group g ("act-order": GPTQ ordered inputs by activation);
            None: g = k // group_size.
        bias: [N], fp32 or x's dtype.

    Returns:
        [M, N], contiguous, x's dtype; sums in fp32. The dequantised weight may be rounded to x's
            dtype first. In C++ and in Triton a row's result does not depend on other rows.

    Papers: Frantar et al. 2022, arXiv:2210.17323; Lin et al. 2023, arXiv:2306.00978.
    """
    out = x.float() @ dequantize(qweight, scales, zeros, group_size, g_idx)
    return (out if bias is None else out + bias.float()).to(x.dtype)


def dequantize(
    qweight: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    group_size: int,
    g_idx: Tensor | None,
) -> Tensor:
    """Dequantise the weight to [K, N] fp32."""
    q = unpack(qweight)
    if g_idx is None:
        g_idx = torch.arange(q.shape[0], device=q.device) // group_size
    zero = SYMMETRIC_ZERO if zeros is None else zeros[g_idx].int()
    return (q - zero) * scales[g_idx].float()
