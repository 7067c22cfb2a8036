"""The definition, in fp32."""

import torch
from torch import Tensor


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
    invariant: bool = False,
) -> Tensor:
    """See `kernels.linear`."""
    matrix = weight.float().T
    # One row at a time where the number of rows must not matter, each from memory of its own: the
    # order of sums may also depend on the alignment of a row's first element.
    pieces = torch.split(x.float(), 1) if invariant else (x.float(),)
    y = torch.cat([piece.clone() @ matrix for piece in pieces])
    if bias is not None:
        y = y + bias.float()
    return y if fp32_out else y.to(x.dtype)
