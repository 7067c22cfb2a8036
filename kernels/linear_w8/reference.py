"""The definition: in fp32, and exact if both sides are integers."""

import torch.nn.functional as F
from torch import Tensor

from kernels.shared.int8_activations import round_to_int8


def linear_w8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
) -> Tensor:
    """Multiply rows by an int8 weight: `x @ weight.T * scale + bias`.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided.
        weight: [N, K] int8, contiguous; all of -128 ... 127.
        scale: [N] fp32.
        bias: [N], fp32 or x's dtype.
        int8_activations: first round each row of x to int8 with a scale of its own, as defined in
            `kernels.shared.int8_activations`. Products and sums are then exact in int32, so the
            order of the sum does not matter; K <= 131071 keeps them below 2^31. The result is `sum
            * row scale * scale + bias` in fp32, from the left.

    Returns:
        [M, N], contiguous, x's dtype; sums in fp32.

    Paper: Dettmers et al. 2022, arXiv:2208.07339, section 2 (vector-wise quantisation, without its
    outliers).
    """
    if int8_activations:
        q, row_scale = round_to_int8(x, x.shape[1])
        # Sums of int8 products are exact in fp64, on every device.
        sums = F.linear(q.flatten(1).double(), weight.double()).float()
        out = sums * row_scale.flatten(1) * scale
    else:
        out = F.linear(x.float(), weight.float()) * scale
    if bias is not None:
        out += bias.float()
    return out.to(x.dtype)
