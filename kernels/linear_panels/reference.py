"""The definition, in fp32."""

import torch.nn.functional as F
from torch import Tensor

from kernels.linear_panels.panels import BLOCK, Panels, unpack
from kernels.shared.int8_activations import round_to_int8


def linear_panels(
    x: Tensor,
    panels: Panels,
    bias: Tensor | None = None,
    *,
    int8_activations: bool = False,
    fp32_out: bool = False,
) -> Tensor:
    """Compute `x @ weight.T + bias` for a weight of few bits.

    The weight is brought into the order of the CPU's instructions once, at load. How x of 16 bits
    meets it depends on the processor (`kernels.isa.packed_arithmetic`). With a matrix unit, the
    weight is unpacked piece by piece and rounded to bf16: results have the bits of `linear_packed`
    with the dequantised weight, from a third of the memory or less. Otherwise no weight is rounded,
    and x becomes integers, so a group's sum is exact: bf16 of one or two bytes
    (`kernels.linear_panels.digit_activations`), fp16, which is chosen for its precision, of 16 bits
    (`kernels.linear_panels.int16_activations`). Where that is not faster, arithmetic is fp32.

    Args:
        x: [M, K], fp32, bf16 or fp16; rows may be strided. K is a multiple of 32.
        panels: the [N, K] weight, from `panels_from_gguf` or `panels_from_floats`.
        bias: [N] fp32.
        int8_activations: multiply in 8-bit integers, faster and less precise, as `linear_gguf`
            does: each 32 elements of a row are rounded as defined in
            `kernels.shared.int8_activations`. Products and their sums within a group of weights are
            exact integers; groups are added in fp32 from the first to the last.
        fp32_out: return the unrounded sums, as logits need them.

    A row's result does not depend on other rows.

    Returns:
        [M, N], contiguous, x's dtype or fp32.

    Paper: Jacob et al. 2018, arXiv:1712.05877, section 2.3, for integers, applied block by block.
    """
    weight = unpack(panels).dequantised()
    if int8_activations:
        codes, scale = round_to_int8(x, BLOCK)
        y = F.linear((codes * scale).reshape(x.shape), weight, bias)
    else:
        y = F.linear(x.float(), weight.to(x.dtype).float(), bias)
    return y if fp32_out else y.to(x.dtype)
