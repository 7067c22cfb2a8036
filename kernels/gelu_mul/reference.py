"""The definition, in fp32."""

import math

import torch
from torch import Tensor


def gelu_mul(gate_up: Tensor) -> Tensor:
    """See `kernels.gelu_mul`."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate.pow(3))
    return (0.5 * gate * (1 + torch.tanh(inner)) * up).to(gate_up.dtype)
