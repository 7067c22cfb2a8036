"""The definition, in fp32."""

import math

import torch
from torch import Tensor


def gelu_mul(gate_up: Tensor) -> Tensor:
    """`gelu(gate) * up`, where gate and up are the two halves of the last dimension.

    The GELU is the approximation by tanh: `x/2 · (1 + tanh(sqrt(2/pi) · (x + 0.044715·x³)))`.

    Args:
        gate_up: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: GLU variants, Shazeer 2020, arXiv:2002.05202, equation 5 (GEGLU).
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate.pow(3))
    return (0.5 * gate * (1 + torch.tanh(inner)) * up).to(gate_up.dtype)
