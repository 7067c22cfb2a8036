"""The number format in which adapters are stored."""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch

from engine.lora.peft_files import Adapter
from kernels.lora_gather import chunk_bytes, num_chunks, pack_each


class AdapterNumbers(NamedTuple):
    """The format of updates of linear and output layers; those of embeddings are in the model's
    dtype."""

    dtype: torch.dtype
    """The model's dtype."""
    is_packed: bool = False
    """Whether the numbers have 8 bits (`kernels.lora_gather.packed`)."""

    def shape(self, rank: int, length: int) -> tuple[int, int]:
        """The shape of the array for A or B with `length` inputs or outputs."""
        return (num_chunks(rank), chunk_bytes(length)) if self.is_packed else (rank, length)

    def num_bytes(self, rank: int, length: int) -> int:
        """The bytes of the array for A or B."""
        return math.prod(self.shape(rank, length)) * self.kept_dtype.itemsize

    @property
    def kept_dtype(self) -> torch.dtype:
        """The dtype of the arrays."""
        return torch.uint8 if self.is_packed else self.dtype

    def kept(self, adapter: Adapter, layers: Collection[str]) -> Adapter:
        """Convert an adapter to the format in which it is stored. Slow.

        Args:
            layers: linear and output layers.
        """
        if not self.is_packed:
            return adapter
        every = {name: update for name, update in adapter.updates.items() if name in layers}
        packed = pack_each([(update.a, update.b) for update in every.values()])
        both = zip(every.items(), packed, strict=True)
        updates = {name: replace(update, a=a, b=b) for (name, update), (a, b) in both}
        return replace(adapter, updates={**adapter.updates, **updates})
