"""Two PyTorch kernels in the input's dtype; the gate is rounded once more than in the reference."""

import torch
from torch import Tensor


def supports(gate_up: Tensor) -> bool:
    """Supports every call."""
    return True


def sigmoid_mul(gate_up: Tensor) -> Tensor:
    """See `kernels.sigmoid_mul`."""
    size = gate_up.shape[1] // 2
    return torch.sigmoid(gate_up.narrow(1, 0, size)).mul_(gate_up.narrow(1, size, size))
