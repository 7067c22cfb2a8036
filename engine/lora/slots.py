"""All adapters of a model side by side, and their additions to the rows of a step.

Each linear layer has one array with every adapter's A and one with every B, padded with zeros to
the highest rank: one launch serves rows with different adapters (`kernels.lora_gather`). Adapters
without that layer have zeros there. A row's bits depend on its own adapter alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.lora.arrays import Arrays
from engine.lora.dora import Gates
from engine.lora.numbers import AdapterNumbers
from engine.lora.peft_files import Adapter, ModelShapes, Need, Update
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.linear import Linear
from kernels import LoraShard, copy_matrices, lora_gather

_GATE_BYTES = torch.float32.itemsize

Needs = Mapping[str, Need]
"""The needs of an adapter's layers, by the checkpoint's names."""
Adaptable = Linear | LmHead | TokenEmbedding
CopiesOf = Mapping[str, Sequence[tuple[int, Any]]]
"""Whole modules by path: the slot of an adapter that brings one, and the module made from it."""


@dataclass(frozen=True, slots=True)
class ShardUpdates(LoraShard):
    """The updates of all adapters for neighbouring outputs of a linear layer."""

    gates: Gates | None = None
    """The gates, or None if no adapter has any here."""

    @classmethod
    def empty(
        cls,
        first: int,
        *,
        num_adapters: int,
        need: Need,
        inputs: int,
        outputs: int,
        zeros: Callable[[int, int], Tensor],
        arrays: Arrays,
    ) -> Self:
        """Create the updates of adapters that change nothing.

        Args:
            zeros: makes the arrays of A and B of all adapters from a rank and a length.
        """
        return cls(
            first,
            outputs,
            zeros(need.rank, inputs),
            zeros(need.rank, outputs),
            arrays.zeros(num_adapters, dtype=torch.float32),
            Gates.empty(num_adapters, outputs, arrays) if need.is_gated else None,
        )

    def put(self, slot: int, update: Update | None) -> None:
        """Set the update of the adapter in a slot, replacing what was there."""
        _fill(self.places(slot, update))
        self.put_factors(slot, update)

    def places(self, slot: int, update: Update | None) -> list[tuple[Tensor, Tensor]]:
        """Return the destinations of A and B with the numbers to copy there."""
        a, b = self.a[slot], self.b[slot]
        return [(a, a[:0]), (b, b[:0])] if update is None else [(a, update.a), (b, update.b)]

    def put_factors(self, slot: int, update: Update | None) -> None:
        """Set the scale and gate of the adapter in a slot."""
        self.scales[slot] = 0.0 if update is None else update.scale
        if self.gates is not None:
            self.gates.put(slot, None if update is None else update.gate)

    def copy_from(self, other: "ShardUpdates", count: int) -> None:
        """Copy the first adapters of other arrays of the same layer, as far as there is room for
        ranks."""
        rank = min(self.a.shape[1], other.a.shape[1])
        self.a[:count, :rank] = other.a[:count, :rank]
        self.b[:count, :rank] = other.b[:count, :rank]
        self.scales[:count] = other.scales[:count]
        if self.gates is not None and other.gates is not None:
            self.gates.copy_from(other.gates, count)


@dataclass(frozen=True, slots=True)
class TableUpdates:
    """The updates of all adapters for an embedding: the looked-up rows times B."""

    looked_up: Tensor
    """[L, V, r]."""
    shard: ShardUpdates
    """The second product, whose A is the identity because the lookup already gives A's output."""

    @classmethod
    def empty(cls, *, num_adapters: int, rank: int, table: TokenEmbedding, arrays: Arrays) -> Self:
        """Create the updates of adapters that change nothing."""
        vocab_size, outputs = table.shape
        return cls(
            arrays.zeros(num_adapters, vocab_size, rank),
            ShardUpdates.empty(
                0,
                num_adapters=num_adapters,
                need=Need(rank, False),
                inputs=rank,
                outputs=outputs,
                zeros=partial(arrays.zeros, num_adapters),
                arrays=arrays,
            ),
        )

    def put(self, slot: int, update: Update | None, scale: float) -> None:
        """Set the update of the adapter in a slot.

        Args:
            scale: the scale of the embedding's rows.
        """
        rank = 0 if update is None else update.rank
        self.looked_up[slot, :, rank:] = 0
        if update is None:
            self.shard.put(slot, None)
            return
        self.looked_up[slot, :, :rank] = update.a.T
        same = torch.eye(rank, self.looked_up.shape[2])
        self.shard.put(slot, replace(update, a=same, scale=update.scale * scale))

    def copy_from(self, other: "TableUpdates", count: int) -> None:
        """Copy the first adapters of other arrays, as far as there is room for ranks."""
        rank = min(self.looked_up.shape[2], other.looked_up.shape[2])
        self.looked_up[:count, :, :rank] = other.looked_up[:count, :, :rank]
        mine, its = self.shard, other.shard
        mine.a[:count, :rank, :rank] = its.a[:count, :rank, :rank]
        mine.b[:count, :rank] = its.b[:count, :rank]
        mine.scales[:count] = its.scales[:count]

    def inner(self, token_ids: Tensor, slots: Tensor) -> Tensor:
        """Look up [T, r] for the rows; rows without an adapter get arbitrary numbers."""
        _, vocab_size, rank = self.looked_up.shape
        places = slots.clamp(min=0).long() * vocab_size + token_ids
        return F.embedding(places, self.looked_up.view(-1, rank))


@dataclass(frozen=True, slots=True)
class LoraRows:
    """The adapters of a step's rows, an `engine.models.forward_context.RowAdapters`."""

    updates: Mapping[str, Sequence[ShardUpdates]]
    slots: Tensor
    tables: Mapping[str, TableUpdates] = field(default_factory=dict)
    copies: CopiesOf = field(default_factory=dict)

    def add(self, path: str, x: Tensor, y: Tensor) -> None:
        if shards := self._gated(path, y):
            lora_gather(y, x, shards, self.slots)

    def add_looked_up(self, path: str, token_ids: Tensor, y: Tensor) -> None:
        if (table := self.tables.get(path)) is not None:
            self.add(path, table.inner(token_ids, self.slots), y)

    def take_copies(self, path: str, y: Tensor, compute: Callable[[Any], Tensor]) -> None:
        for slot, copy in self.copies.get(path, ()):
            has_it = (self.slots == slot)[:, None]
            y.copy_(torch.where(has_it, compute(copy), y))

    def add_to_logits(
        self, path: str, hidden: Tensor, logits: Tensor, compute: Callable[[Any, Tensor], Tensor]
    ) -> None:
        for slot, copy in self.copies.get(path, ()):
            rows = (self.slots == slot).nonzero().flatten()
            if len(rows):
                logits[rows] = compute(copy, hidden[rows])
        if shards := self._gated(path, logits):
            update = torch.zeros(logits.shape, dtype=hidden.dtype, device=hidden.device)
            lora_gather(update, hidden, shards, self.slots)
            logits += update

    def _gated(self, path: str, y: Tensor) -> Sequence[ShardUpdates]:
        """Return the shards of a layer after scaling its outputs in place by their gates."""
        shards = self.updates.get(path, ())
        for shard in shards:
            if shard.gates is not None:
                shard.gates.apply(shard.part_of(y), self.slots)
        return shards

    def at(self, rows: Tensor) -> "LoraRows":
        return replace(self, slots=self.slots[rows])


@dataclass(frozen=True, slots=True)
class Room:
    """The number of adapters that a model's arrays hold, and the size of each layer's part."""

    num_slots: int = 0
    needs: Needs = field(default_factory=dict)

    @classmethod
    def of(cls, num_slots: int, adapters: Iterable[Needs]) -> Self:
        """The size that these adapters need."""
        most: dict[str, Need] = {}
        for needs in adapters:
            for path, need in needs.items():
                other = most.get(path, need)
                rank = max(need.rank, other.rank)
                most[path] = Need(rank, need.is_gated or other.is_gated)
        return cls(num_slots, most)

    def holds(self, slot: int, needs: Needs) -> bool:
        """Whether an adapter with these needs fits into that slot."""
        none = Need(0, False)
        fits = all(
            need.rank <= self.needs.get(path, none).rank
            and need.is_gated <= self.needs.get(path, none).is_gated
            for path, need in needs.items()
        )
        return fits and slot < self.num_slots

    def num_bytes(self, shapes: ModelShapes, numbers: AdapterNumbers) -> int:
        """The bytes of the arrays of A, B and gates."""
        total = 0
        for path, need in self.needs.items():
            outputs, inputs = shapes.sizes(path)
            if path in shapes.tables:
                num_bytes = need.rank * (outputs + inputs + need.rank) * numbers.dtype.itemsize
            else:
                num_bytes = sum(numbers.num_bytes(need.rank, size) for size in (outputs, inputs))
            total += self.num_slots * num_bytes
            total += (self.num_slots + 2) * outputs * _GATE_BYTES * need.is_gated
        return total


class LoraSlots:
    """Arrays of a fixed size with an adapter in each slot. A slot may be refilled while no row uses
    it.

    Args:
        most_slots: the most slots that there may ever be; memory is taken for those of `room` and
            for those that are filled beyond them.
        before: the arrays whose adapters keep their slots; None if all slots are empty.

    Attributes:
        room: the size that is in use. May be raised up to `capacity` slots.
    """

    def __init__(
        self,
        layers: Iterable[Adaptable],
        room: Room,
        numbers: AdapterNumbers,
        device: torch.device,
        before: "LoraSlots | None" = None,
        *,
        most_slots: int = 0,
    ) -> None:
        self.room = room
        layers = list(layers)
        self.capacity = max(most_slots, room.num_slots)
        arrays = Arrays(numbers, device, self.capacity, _row_bytes(layers, room, numbers))
        self._shards: dict[str, ShardUpdates] = {}
        self._tables: dict[str, tuple[TableUpdates, float]] = {}
        """The tables with the scale of their lookups."""
        self._updates: dict[str, list[ShardUpdates]] = {}
        for layer in layers:
            if isinstance(layer, TokenEmbedding):
                self._create_table(layer, arrays)
            else:
                self._updates[layer.path] = self._create(layer, arrays)
        if before is not None:
            count = min(room.num_slots, before.room.num_slots)
            for path in self._shards.keys() & before._shards.keys():
                self._shards[path].copy_from(before._shards[path], count)
            for path in self._tables.keys() & before._tables.keys():
                self._tables[path][0].copy_from(before._tables[path][0], count)

    def put(self, slot: int, adapter: Adapter) -> None:
        """Fill a slot with an adapter that fits."""
        every = [(shard, adapter.updates.get(path)) for path, shard in self._shards.items()]
        _fill(place for shard, update in every for place in shard.places(slot, update))
        for shard, update in every:
            shard.put_factors(slot, update)
        for path, (table, scale) in self._tables.items():
            table.put(slot, adapter.updates.get(path), scale)

    def of_rows(self, slots: Tensor, copies: CopiesOf | None = None) -> LoraRows:
        tables = {path: table for path, (table, _) in self._tables.items()}
        return LoraRows(self._updates, slots, tables, copies or {})

    def _create_table(self, layer: TokenEmbedding, arrays: Arrays) -> None:
        need = self.room.needs.get(layer.path)
        if need is None:
            return
        table = TableUpdates.empty(
            num_adapters=self.capacity, rank=need.rank, table=layer, arrays=arrays
        )
        self._tables[layer.path] = table, layer.scale
        self._updates[layer.path] = [table.shard]

    def _create(self, layer: Linear | LmHead, arrays: Arrays) -> list[ShardUpdates]:
        found, first = [], 0
        for path, shard in zip(layer.shard_paths, layer.shards, strict=True):
            if (need := self.room.needs.get(path)) is not None:
                self._shards[path] = ShardUpdates.empty(
                    first,
                    num_adapters=self.capacity,
                    need=need,
                    inputs=layer.in_features,
                    outputs=shard.out_features,
                    zeros=arrays.rows,
                    arrays=arrays,
                )
                found.append(self._shards[path])
            first += shard.out_features
        return found


def _row_bytes(layers: Iterable[Adaptable], room: Room, numbers: AdapterNumbers) -> Iterator[int]:
    """The bytes of each A and B of an adapter in linear and output layers."""
    for layer in layers:
        if isinstance(layer, TokenEmbedding):
            continue
        for path, shard in zip(layer.shard_paths, layer.shards, strict=True):
            if (need := room.needs.get(path)) is not None:
                yield numbers.num_bytes(need.rank, layer.in_features)
                yield numbers.num_bytes(need.rank, shard.out_features)


def _fill(places: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the given numbers to the first rows of each place, and zeros to the others."""
    every = list(places)
    if all(place.is_cpu for place, _ in every):
        copy_matrices([place for place, _ in every], [given for _, given in every])
        return
    for place, given in every:  # without waiting for the device
        place[: len(given)] = given
        place[len(given) :] = 0
