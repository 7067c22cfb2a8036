"""Multiplication with block-quantised weights in 8-bit integers, for CPUs."""

from torch import Tensor

from kernels.linear_panels import cases, cpu, reference
from kernels.linear_panels.gguf import panels_from_gguf
from kernels.linear_panels.panels import Panels
from kernels.linear_panels.quantize import panels_from_floats
from kernels.registry import op


@op(cases)
def linear_panels(
    x: Tensor,
    panels: Panels,
    bias: Tensor | None = None,
    *,
    fp32_out: bool = False,
) -> Tensor:
    """Multiply rows, rounded to int8, with a weight in panels: `round(x) @ weight.T + bias`.

    What `linear_gguf` with `int8_activations` computes, for weights that were brought into the
    order of the CPU's instructions once, at load.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided. K is a multiple of 32.
        panels: the [N, K] weight, from `panels_from_gguf` or `panels_from_floats`.
        bias: [N] fp32.
        fp32_out: return the sums as they are, as logits need it.

    Each 32 elements of a row are rounded to int8 as `kernels.int8_activations` says. Products and
    their sums within a group of weights are exact integers; groups are added in fp32 from the
    first to the last, so that a row's result does not depend on the rows beside it.

    Returns:
        [M, N], contiguous, x's dtype or fp32.

    Paper: Jacob et al. 2018, arXiv:1712.05877, section 2.3, applied block by block.
    """
    return reference.linear_panels(x, panels, bias, fp32_out=fp32_out)


linear_panels.implementation("cpu", supports=cpu.supports)(cpu.linear_panels)

__all__ = ["Panels", "linear_panels", "panels_from_floats", "panels_from_gguf"]
