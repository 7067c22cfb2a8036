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
    """Compute `x @ weight.T + bias`.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided.
        weight: [N, K], x's dtype, contiguous.
        bias: [N], fp32 or x's dtype.
        fp32_out: return the unrounded sums. Logits need this: bf16 numbers between 16 and 32 are an
            eighth apart.
        invariant: a row's result has the same bits whatever the other rows are. Vendors' libraries,
            which run otherwise, choose the order of their sums by the number of rows.

    Returns:
        [M, N], contiguous, x's dtype or fp32. Sums in fp32, rounded once.
    """
    matrix = weight.float().T
    # One row at a time where the number of rows must not matter, each from memory of its own: the
    # order of sums may also depend on the alignment of a row's first element.
    pieces = torch.split(x.float(), 1) if invariant else (x.float(),)
    y = torch.cat([piece.clone() @ matrix for piece in pieces])
    if bias is not None:
        y = y + bias.float()
    return y if fp32_out else y.to(x.dtype)
