"""Rows with the same adapter are multiplied together.

Waits for the device, to learn which adapters there are; the sum's order is that of `F.linear`,
which may depend on the number of rows.
"""

import torch.nn.functional as F
from torch import Tensor


def supports(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter_ids: Tensor, scales: Tensor
) -> bool:
    """Takes every call."""
    return True


def lora_gather(
    y: Tensor, x: Tensor, a: Tensor, b: Tensor, adapter_ids: Tensor, scales: Tensor
) -> None:
    """See `kernels.lora_gather`."""
    for adapter in sorted(set(adapter_ids.tolist())):
        if adapter < 0:
            continue
        rows = (adapter_ids == adapter).nonzero().flatten()
        inner = F.linear(x[rows].float(), a[adapter].float())
        update = inner @ b[adapter].float()
        y[rows] = (y[rows] + scales[adapter] * update).to(y.dtype)
