"""PyTorch's own fused kernel."""

import torch.nn.functional as F
from torch import Tensor


def supports(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Takes every call."""
    return True


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """See `kernels.attention`."""
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2).contiguous()
