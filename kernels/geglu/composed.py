"""Two PyTorch kernels in the input's dtype; the gate is rounded once more than in the reference."""

import torch.nn.functional as F
from torch import Tensor


def geglu(up_gate: Tensor) -> Tensor:
    """See `kernels.geglu`."""
    size = up_gate.shape[1] // 2
    return F.gelu(up_gate.narrow(1, size, size)).mul_(up_gate.narrow(1, 0, size))
