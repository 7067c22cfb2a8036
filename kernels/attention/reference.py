"""The definition, in fp32."""

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`softmax(query · keyᵀ / sqrt(D)) · value` for each row and head.

    Args:
        query: [R, H, Q, D], any float dtype, any strides. Not changed.
        key, value: [R, H, L, D], L >= 1, the same dtype.

    Returns:
        [R, Q, H·D], contiguous, as the projection after it takes it. A row's result does not
        depend on the other rows, nor a query's on the other queries.

    Paper: Vaswani et al. 2017, arXiv:1706.03762, equation 1.
    """
    scores = query.float() @ key.float().transpose(2, 3) / query.shape[3] ** 0.5
    mixed = torch.softmax(scores, dim=-1) @ value.float()
    return mixed.transpose(1, 2).flatten(2).to(query.dtype).contiguous()
