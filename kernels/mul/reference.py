"""The definition."""

from torch import Tensor


def mul(x: Tensor, y: Tensor) -> Tensor:
    """`x * y`.

    Args:
        x, y: [T, I], one float dtype, any strides of rows. Not changed.

    Returns:
        [T, I]. Computed in fp32, rounded once.
    """
    return x * y
