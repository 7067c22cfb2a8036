"""Multiplication by a weight of 4-bit integers in groups, as in GPTQ and AWQ."""

from torch import Tensor

from kernels import _triton
from kernels.linear_w4a16 import cases, composed, cpu, reference
from kernels.registry import every_call, op


@op(cases)
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
    return reference.linear_w4a16(x, qweight, scales, zeros, group_size, g_idx, bias)


linear_w4a16.implementation("cpu", supports=cpu.supports)(cpu.linear_w4a16)
linear_w4a16.implementation("composed", supports=every_call)(composed.linear_w4a16)
if _triton.AVAILABLE:
    from kernels.linear_w4a16 import triton as triton_w4a16

    linear_w4a16.implementation("triton", supports=triton_w4a16.supports)(triton_w4a16.linear_w4a16)
