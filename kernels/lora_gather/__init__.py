"""Low-rank updates of rows that have different adapters, in one call."""

from collections.abc import Sequence

from torch import Tensor

from kernels import _triton
from kernels.lora_gather import cases, composed, cpu, reference
from kernels.lora_gather.packed import chunk_bytes, num_chunks, pack
from kernels.lora_gather.packing import pack_each
from kernels.lora_gather.shard import LoraShard
from kernels.registry import every_call, op

__all__ = ["LoraShard", "lora_gather", "chunk_bytes", "num_chunks", "pack", "pack_each"]


@op(cases)
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
    reference.lora_gather(y, x, shards, adapter_ids)


lora_gather.implementation("composed", supports=every_call)(composed.lora_gather)
lora_gather.implementation("cpu", supports=cpu.supports)(cpu.lora_gather)
if _triton.AVAILABLE:
    from kernels.lora_gather import triton as triton_lora

    lora_gather.implementation("triton", supports=triton_lora.supports)(triton_lora.lora_gather)
