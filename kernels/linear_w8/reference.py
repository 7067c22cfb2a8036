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
    """See `kernels.linear_w8`."""
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
