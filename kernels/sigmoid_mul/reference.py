"""The definition, in fp32."""

import torch
from torch import Tensor


def sigmoid_mul(gate_up: Tensor) -> Tensor:
    """`sigmoid(gate) * up`, where gate and up are the two halves of the last dimension.

    Args:
        gate_up: [T, 2·I], any float dtype. Not changed.

    Returns:
        [T, I], contiguous.

    Paper: Shazeer 2020, arXiv:2002.05202, equation 4 (GLU).
    """
    gate, up = gate_up.float().chunk(2, dim=-1)
    return (torch.sigmoid(gate) * up).to(gate_up.dtype)
