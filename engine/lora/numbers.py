"""In what the numbers of adapters are kept."""

import math
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

import torch

from engine.lora.peft_files import Adapter
from kernels.lora_gather import chunk_bytes, num_chunks, pack_each


class AdapterNumbers(NamedTuple):
    """Those of updates of linear and output layers; embeddings' are in the model's type."""

    dtype: torch.dtype
    """The model's."""
    is_packed: bool = False
    """They have 8 bits (`kernels.lora_gather.packed`)."""

    def shape(self, rank: int, length: int) -> tuple[int, int]:
        """Of the array that A or B is, of so many inputs or outputs."""
        return (num_chunks(rank), chunk_bytes(length)) if self.is_packed else (rank, length)

    def num_bytes(self, rank: int, length: int) -> int:
        """That the array takes."""
        return math.prod(self.shape(rank, length)) * self.kept_dtype.itemsize

    @property
    def kept_dtype(self) -> torch.dtype:
        """Of the arrays."""
        return torch.uint8 if self.is_packed else self.dtype

    def kept(self, adapter: Adapter, layers: Collection[str]) -> Adapter:
        """An adapter as it is kept. Takes its time.

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
