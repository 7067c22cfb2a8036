"""All adapters of a model side by side, and what they add to the rows of a step.

Per linear layer there is one array of every adapter's A and one of its B, padded with zeros to the
highest rank: a launch serves rows with different adapters (`kernels.lora_gather`). Adapters without
that layer have zeros there. A row's bits depend on its own adapter alone.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from engine.lora.peft_files import Adapter, Shapes, Update
from engine.models.layers.linear import Linear
from engine.models.layers.weight_slots import WeightOptions
from kernels import lora_gather

Ranks = Mapping[str, int]
"""Of an adapter's layers, by the checkpoint's names."""


@dataclass(frozen=True, slots=True)
class ShardUpdates:
    """What all adapters have for some neighbouring outputs of a linear layer."""

    first: int
    """Of the outputs."""
    a: Tensor
    """[L, r, in]."""
    b: Tensor
    """[L, r, out]."""
    scales: Tensor
    """[L] fp32."""

    @classmethod
    def empty(
        cls,
        first: int,
        *,
        num_adapters: int,
        rank: int,
        inputs: int,
        outputs: int,
        options: WeightOptions,
    ) -> Self:
        """Of adapters that change nothing."""
        dtype, device = options.dtype, options.device
        return cls(
            first,
            torch.zeros(num_adapters, rank, inputs, dtype=dtype, device=device),
            torch.zeros(num_adapters, rank, outputs, dtype=dtype, device=device),
            torch.zeros(num_adapters, device=device),
        )

    def put(self, slot: int, update: Update | None) -> None:
        """Set what the adapter in a slot has, whatever was there before."""
        rank = 0
        if update is not None:
            rank = update.rank
            self.a[slot, :rank] = update.a
            self.b[slot, :rank] = update.b
        self.a[slot, rank:] = 0
        self.b[slot, rank:] = 0
        self.scales[slot] = 0.0 if update is None else update.scale

    def copy_from(self, other: "ShardUpdates") -> None:
        """Take the adapters over that others of the same layer have, as far as there is room."""
        count = min(len(self.a), len(other.a))
        rank = min(self.a.shape[1], other.a.shape[1])
        self.a[:count, :rank] = other.a[:count, :rank]
        self.b[:count, :rank] = other.b[:count, :rank]
        self.scales[:count] = other.scales[:count]


@dataclass(frozen=True, slots=True)
class LoraRows:
    """A step's rows: `engine.models.forward_context.RowAdapters`."""

    updates: Mapping[str, Sequence[ShardUpdates]]
    slots: Tensor

    def add(self, path: str, x: Tensor, y: Tensor) -> None:
        for shard in self.updates.get(path, ()):
            part = y.narrow(1, shard.first, shard.b.shape[2])
            lora_gather(part, x, shard.a, shard.b, self.slots, shard.scales)


@dataclass(frozen=True, slots=True)
class Room:
    """How many adapters the arrays of a model hold, and how high a rank of each layer."""

    num_slots: int = 0
    ranks: Ranks = field(default_factory=dict)

    @classmethod
    def of(cls, num_slots: int, adapters: Iterable[Ranks]) -> Self:
        """As much as these adapters need."""
        highest: dict[str, int] = {}
        for ranks in adapters:
            for path, rank in ranks.items():
                highest[path] = max(rank, highest.get(path, 0))
        return cls(num_slots, highest)

    def holds(self, slot: int, ranks: Ranks) -> bool:
        """Whether such an adapter fits into that slot."""
        fits = all(rank <= self.ranks.get(path, 0) for path, rank in ranks.items())
        return fits and slot < self.num_slots

    def num_bytes(self, shapes: Shapes, itemsize: int) -> int:
        """Of the arrays."""
        per_slot = sum(rank * sum(shapes[path]) for path, rank in self.ranks.items())
        return self.num_slots * per_slot * itemsize


class LoraSlots:
    """Arrays of a fixed size. A slot may be filled anew while no row has it.

    Args:
        before: whose adapters keep their slots. None: all slots are empty.
    """

    def __init__(
        self,
        layers: Iterable[Linear],
        room: Room,
        options: WeightOptions,
        before: "LoraSlots | None" = None,
    ) -> None:
        self.room = room
        self._shards: dict[str, ShardUpdates] = {}
        self._updates = {layer.path: self._create(layer, options) for layer in layers}
        if before is not None:
            for path in self._shards.keys() & before._shards.keys():
                self._shards[path].copy_from(before._shards[path])

    def put(self, slot: int, adapter: Adapter) -> None:
        """Fill a slot in which the adapter fits."""
        for path, shard in self._shards.items():
            shard.put(slot, adapter.updates.get(path))

    def of_rows(self, slots: Tensor) -> LoraRows:
        return LoraRows(self._updates, slots)

    def _create(self, layer: Linear, options: WeightOptions) -> list[ShardUpdates]:
        found, first = [], 0
        for path, shard in zip(layer.shard_paths, layer.shards, strict=True):
            if rank := self.room.ranks.get(path):
                self._shards[path] = ShardUpdates.empty(
                    first,
                    num_adapters=self.room.num_slots,
                    rank=rank,
                    inputs=layer.in_features,
                    outputs=shard.out_features,
                    options=options,
                )
                found.append(self._shards[path])
            first += shard.out_features
        return found
