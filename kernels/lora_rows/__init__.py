"""Low-rank updates of rows of many positions, each row with its own adapters, in one call."""

from kernels.lora_rows import cases, cpu, reference
from kernels.lora_rows.updates import RowUpdates
from kernels.registry import op

__all__ = ["RowUpdates", "lora_rows"]

lora_rows = op(cases)(reference.lora_rows)
lora_rows.implementation("cpu", supports=cpu.supports)(cpu.lora_rows)
