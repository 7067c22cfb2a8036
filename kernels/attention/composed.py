"""PyTorch's own fused kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """See `kernels.attention`."""
    if not query.is_cpu or not len(query):
        return _attention(query, key, value)
    # Libraries choose the order of their sums by the number of rows, and by where one lies.
    rows = zip(*(torch.split(tensor, 1) for tensor in (query, key, value)), strict=True)
    return torch.cat([_attention(*(_copied(part) for part in row)) for row in rows])


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2).contiguous()


def _copied(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)
