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
    """See `kernels.short_conv`."""
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
