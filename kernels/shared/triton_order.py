"""The order of tokens (`kernels.score_tokens.ranking`) for Triton kernels."""

from kernels._triton import tl, triton


@triton.jit
def order_keys(x):
    """Convert fp32 numbers to integers that sort as they do, with the two zeros equal."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
