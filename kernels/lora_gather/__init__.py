"""Low-rank updates of rows that have different adapters, in one call."""

from kernels import _triton
from kernels.lora_gather import cases, composed, cpu, reference
from kernels.lora_gather.packed import chunk_bytes, num_chunks, pack
from kernels.lora_gather.packing import pack_each
from kernels.lora_gather.shard import LoraShard
from kernels.registry import every_call, op

__all__ = ["LoraShard", "lora_gather", "chunk_bytes", "num_chunks", "pack", "pack_each"]

lora_gather = op(cases)(reference.lora_gather)
lora_gather.implementation("composed", supports=every_call)(composed.lora_gather)
lora_gather.implementation("cpu", supports=cpu.supports)(cpu.lora_gather)
if _triton.AVAILABLE:
    from kernels.lora_gather import triton as triton_lora

    lora_gather.implementation("triton", supports=triton_lora.supports)(triton_lora.lora_gather)
