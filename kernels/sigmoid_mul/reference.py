"""The definition, in fp32."""

import torch
from torch import Tensor


def sigmoid_mul(gate_up: Tensor, up: Tensor | None = None) -> Tensor:
    """`sigmoid(gate) * up`: gate and up are two tensors, or the halves of one.

    Args:
        gate_up: [T, 2·I], any float dtype; the gate alone, [T, I], if `up` is given. Not changed.
        up: [T, I].

    Returns:
        [T, I], contiguous.

    Paper: Shazeer 2020, arXiv:2002.05202, equation 4 (GLU).
    """
    halves = gate_up.chunk(2, dim=-1) if up is None else (gate_up, up)
    gate, up = (half.float() for half in halves)
    return (torch.sigmoid(gate) * up).to(gate_up.dtype)
