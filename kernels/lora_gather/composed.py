"""Rows with the same adapter are multiplied together.

The host waits for the device, to learn which adapters there are; the sum's order is that of
`F.linear`, which may depend on the number of rows.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from kernels.lora_gather.shard import LoraShard


def lora_gather(y: Tensor, x: Tensor, shards: Sequence[LoraShard], adapter_ids: Tensor) -> None:
    """See `kernels.lora_gather`."""
    for adapter in sorted(set(adapter_ids.tolist())):
        if adapter < 0:
            continue
        rows = (adapter_ids == adapter).nonzero().flatten()
        given = x[rows].float()
        for shard in shards:
            part = shard.part_of(y)
            a, b = shard.in_fp32(adapter, x.shape[1])
            update = F.linear(given, a) @ b
            part[rows] = (part[rows] + shard.scales[adapter] * update).to(y.dtype)
