"""The definition: row by row, in fp32, rounded once."""

from collections.abc import Sequence

from torch import Tensor

from kernels.lora_gather.shard import LoraShard


def lora_gather(y: Tensor, x: Tensor, shards: Sequence[LoraShard], adapter_ids: Tensor) -> None:
    """Add each row's low-rank updates: for each shard `scales[i] * (a[i] @ x[t]) @ b[i]`, i being
    the row's adapter, to the shard's outputs in `y[t]`.

    Args:
        y: [T, ...], fp32, bf16 or fp16; rows may be strided. Mutated.
        x: [T, K], y's dtype; rows may be strided.
        shards: of y's dtype, or all of them packed in 8 bits; no two have the same outputs.
        adapter_ids: [T] int32; -1 leaves the row unchanged.

    The inner product of r elements stays in fp32 and the sum is rounded once. The host does not
    wait for the device, unless an implementation says so.

    Papers: Hu et al. 2021, arXiv:2106.09685; Chen et al. 2023 (Punica), arXiv:2310.18547.
    """
    for shard in shards:
        part = shard.part_of(y)
        for row, adapter in enumerate(adapter_ids.tolist()):
            if adapter < 0:
                continue
            a, b = shard.in_fp32(adapter, x.shape[1])
            update = (a @ x[row].float()) @ b
            part[row] = (part[row].float() + shard.scales[adapter] * update).to(y.dtype)
