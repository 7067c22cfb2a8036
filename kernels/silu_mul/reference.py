"""The definition, in fp32."""

import torch
from torch import Tensor


def silu_mul(gate_up: Tensor) -> Tensor:
    """`silu(gate) * up`, where gate and up are the two halves of the last dimension.

    Args:
        gate_up: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: GLU variants, Shazeer 2020, arXiv:2002.05202, equation 5 (SwiGLU).
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)
