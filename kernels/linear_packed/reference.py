"""The definition, in fp32, from the unpacked weight."""

from torch import Tensor

from kernels.linear_packed.packed_weight import PackedWeight


def linear_packed(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, *, fp32_out: bool = False
) -> Tensor:
    """Compute `x @ W.T + bias`; a row's result has the same bits whatever the other rows are.

    Products are summed in fp32, one sum per output, in the order of the inputs (where the processor
    multiplies bf16 pairs, pair by pair) and rounded once.

    Args:
        x: [M, K], the weight's dtype; rows may be strided.
        weight: W, [N, K], packed; on the CPU.
        bias: [N] fp32.
        fp32_out: return the unrounded sums. Logits need this: bf16 numbers between 16 and 32 are an
            eighth apart.

    Returns:
        [M, N], contiguous, x's dtype or fp32.
    """
    y = x.float() @ weight.unpack().float().T
    if bias is not None:
        y = y + bias
    return y if fp32_out else y.to(x.dtype)
