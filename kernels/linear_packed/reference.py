"""The definition, in fp32, from the unpacked weight."""

from torch import Tensor

from kernels.linear_packed.packed_weight import PackedWeight


def linear_packed(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, fp32_out: bool = False
) -> Tensor:
    """See `kernels.linear_packed`."""
    y = x.float() @ weight.unpack().float().T
    if bias is not None:
        y = y + bias
    return y if fp32_out else y.to(x.dtype)
