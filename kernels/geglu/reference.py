"""The definition, in fp32."""

import torch
from torch import Tensor


def geglu(up_gate: Tensor) -> Tensor:
    """See `kernels.geglu`."""
    up, gate = up_gate.float().chunk(2, dim=-1)
    return (up * gate * 0.5 * (1 + torch.erf(gate * 0.5**0.5))).to(up_gate.dtype)
