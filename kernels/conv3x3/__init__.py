"""3x3 convolution of feature maps with the operations that follow it in networks for enlarging
images."""

from torch import Tensor

from kernels.conv3x3 import cases, cpu, reference
from kernels.conv3x3.convolution import Convolution
from kernels.registry import op

__all__ = ["Convolution", "conv3x3"]


@op(cases)
def conv3x3(
    x: Tensor,
    convolution: Convolution,
    addend: Tensor | None = None,
    scale: float = 1.0,
    out: Tensor | None = None,
) -> Tensor:
    """Convolve zero-padded maps, apply slopes, and add the addend.

    Args:
        x: [R, C, H, W], fp32, fastest where a cell's channels lie side by side: channels-last
            layout, or some channels of a wider map in it.
        convolution: from C to N channels.
        addend: [R, N, H, W]; the result is `addend + scale * convolved`.
        out: [R, N, H, W], with the same choice of layouts as x; written to. May be other channels
            of x's map.

    Returns:
        [R, N, H, W], `out` or a new map in channels-last layout. In the faster implementation a
            row's result depends on the row alone; cells that have the same surroundings but lie
            differently to multiples of 4 may differ by rounding.

    Papers: Winograd 1980, Arithmetic Complexity of Computations; Lavin and Gray 2015,
    arXiv:1509.09308, section 4.3.
    """
    return reference.conv3x3(x, convolution, addend, scale, out)


conv3x3.implementation("cpu", supports=cpu.supports)(cpu.conv3x3)
