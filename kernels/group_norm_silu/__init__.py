"""Group normalisation of feature maps with the SiLU that follows it in a residual block."""

from torch import Tensor

from kernels import _triton
from kernels.group_norm_silu import cases, composed, cpu, reference
from kernels.registry import op


@op(cases)
def group_norm_silu(
    x: Tensor, num_groups: int, weight: Tensor, bias: Tensor, eps: float, silu: bool = True
) -> Tensor:
    """Normalise each group of channels over the whole map to zero mean and unit variance.

    Args:
        x: [R, C, H, W], any float dtype, fastest in channels-last layout. Not changed.
        num_groups: divides C.
        weight, bias: [C], x's dtype.
        eps: added to the variance.
        silu: whether `y * sigmoid(y)` follows.

    Returns:
        [R, C, H, W], x's dtype; in x's layout or channels-last. Computed in fp32, rounded once. In
            the faster implementations a row's result depends on the row alone.

    Papers: Wu and He 2018, arXiv:1803.08494; Elfwing et al. 2017, arXiv:1702.03118.
    """
    return reference.group_norm_silu(x, num_groups, weight, bias, eps, silu)


group_norm_silu.implementation("composed", supports=composed.supports)(composed.group_norm_silu)
group_norm_silu.implementation("cpu", supports=cpu.supports)(cpu.group_norm_silu)
if _triton.AVAILABLE:
    from kernels.group_norm_silu import triton

    group_norm_silu.implementation("triton", supports=triton.supports)(triton.group_norm_silu)
