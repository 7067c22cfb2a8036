"""Attention over whole sequences without masks, as denoisers need it."""

from torch import Tensor

from kernels.attention import cases, composed, cpu, reference
from kernels.registry import every_call, op


@op(cases)
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
    return reference.attention(query, key, value)


attention.implementation("composed", supports=every_call)(composed.attention)
attention.implementation("cpu", supports=cpu.supports)(cpu.attention)
