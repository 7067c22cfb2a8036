"""Causal convolution over a few positions, channel by channel, with a state between steps."""

from torch import Tensor

from kernels import _triton
from kernels.registry import op
from kernels.shared.recurrent_batch import RecurrentBatch
from kernels.short_conv import cases, cpu, reference


@op(cases)
def short_conv(
    x: Tensor,
    weight: Tensor,
    states: Tensor,
    batch: RecurrentBatch,
    *,
    bias: Tensor | None = None,
    silu: bool = True,
) -> Tensor:
    """Mix each channel's last W inputs: `y[t] = act(bias + Σ weight[j] · x[t - W + 1 + j])`.

    Args:
        x: [T, C], any strides of rows. Not changed.
        weight: [C, W] fp32, W from 2 to 8; the last column is for the row itself.
        states: [S, C, W - 1], x's dtype: the last inputs before the rows, the latest one last.
            Slots of `batch.write_slots` are mutated; `states[i]` is contiguous.
        batch: rows and slots of the sequences.
        bias: [C] fp32.
        silu: whether SiLU follows.

    Returns:
        [T, C], contiguous, x's dtype. Computed in fp32, rounded once. A row's result depends on its
            own sequence alone, and not on how that is cut into steps.

    Paper: Gu and Dao 2023, arXiv:2312.00752, section 3.4.
    """
    return reference.short_conv(x, weight, states, batch, bias=bias, silu=silu)


short_conv.implementation("cpu", supports=cpu.supports)(cpu.short_conv)
if _triton.AVAILABLE:
    from kernels.short_conv import triton

    short_conv.implementation("triton", supports=triton.supports)(triton.short_conv)
