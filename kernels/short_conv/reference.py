"""The definition, in fp32."""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.shared.recurrent_batch import RecurrentBatch


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
    out = x.new_empty(x.shape)
    for first, last, read, write in batch.on_host():
        before = torch.zeros_like(states[write]) if read < 0 else states[read]
        inputs = torch.cat((before, x[first:last].T), 1)  # [C, W - 1 + rows]
        windows = inputs.float().unfold(1, weight.shape[1], 1)  # [C, rows, W]
        mixed = torch.einsum("crw,cw->rc", windows, weight)
        mixed = mixed if bias is None else mixed + bias
        out[first:last] = (F.silu(mixed) if silu else mixed).to(x.dtype)
        states[write] = inputs[:, inputs.shape[1] - before.shape[1] :].clone()
    return out
