"""The definition, in fp32."""

import torch
from torch import Tensor


def geglu(up_gate: Tensor) -> Tensor:
    """`up * gelu(gate)`, where up and gate are the two halves of the last dimension.

    The order is that of diffusers, and the GELU is the exact one, with the error function.

    Args:
        up_gate: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: GLU variants, Shazeer 2020, arXiv:2002.05202, equation 5 (GEGLU).
    """
    up, gate = up_gate.float().chunk(2, dim=-1)
    return (up * gate * 0.5 * (1 + torch.erf(gate * 0.5**0.5))).to(up_gate.dtype)
