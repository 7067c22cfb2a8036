"""The definition: row by row, in fp32, rounded once."""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora_gather.shard import LoraShard


def lora_gather(y: Tensor, x: Tensor, shards: Sequence[LoraShard], adapter_ids: Tensor) -> None:
    """See `kernels.lora_gather`."""
    for shard in shards:
        part = shard.part_of(y)
        for row, adapter in enumerate(adapter_ids.tolist()):
            if adapter < 0:
                continue
            a, b = shard.in_fp32(adapter, x.shape[1])
            update = (a @ x[row].float()) @ b
            part[row] = (part[row].float() + shard.scales[adapter] * update).to(y.dtype)
