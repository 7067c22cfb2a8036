"""The same in five PyTorch kernels on whole heads."""

from torch import Tensor


def supports(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """All inputs."""
    return True


def rope_inplace(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `kernels.rope`."""
    y = x.float()
    swapped = y.roll(x.shape[-1] // 2, -1)
    # In place also where `y` is `x` (fp32): `swapped` is a copy.
    y.mul_(cos).addcmul_(swapped, sin)
    if y is not x:
        x.copy_(y)
