"""The adapters that a text model has, side by side in arrays, which grow in a thread."""

import os
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import Future
from itertools import count
from pathlib import Path
from typing import Any

import structlog
from torch import Tensor

from engine.adapter_orders import AdapterOrder, AdapterReport
from engine.errors import InsufficientMemory, UnknownAdapter
from engine.host import Grant, Host
from engine.lora.copies import Copies
from engine.lora.dora import with_gates
from engine.lora.peft_config import CONFIG
from engine.lora.peft_files import WEIGHTS, Adapter, read_adapter
from engine.lora.shelf import AdapterLimits, Shelf, Steps, cause_of
from engine.lora.slots import LoraRows, LoraSlots, Needs, Room
from engine.lora.source import Source
from engine.models.causal_lm import CausalLM
from engine.models.layers.linear import Linear
from engine.runtime.huge_pages import use_huge_pages
from engine.runtime.memory import available_host_memory

log = structlog.get_logger(__name__)


class AdapterTable(Shelf[Needs, int]):
    """`engine.models.adapters.Adapters`, and the engine's `engine.adapter_orders.AdapterShelf`.

    Places are slots of the arrays. Where there may be more adapters than slots, or memory is
    limited, copies of their numbers are kept in the host's memory as long as that suffices; others
    are read from their files again.

    Invariant: adapters in place are in different slots, which the arrays have.

    Attributes:
        version: of the arrays; what was recorded with other ones is worthless.
    """

    def __init__(self, model: CausalLM, host: Host, limits: AdapterLimits) -> None:
        super().__init__(limits)
        self.version = 0
        self._host = host
        self._options = model.options
        self._layers = [
            module
            for module in model.modules()
            if isinstance(module, Linear) and module.takes_adapters
        ]
        self._shapes = {
            path: (shard.out_features, layer.in_features)
            for layer in self._layers
            for path, shard in zip(layer.shard_paths, layer.shards, strict=True)
        }
        self._slots = self._empty_slots()
        self._grant: Grant | None = None
        is_on_host = self._options.device.type == "cpu"
        capacity = limits.capacity_bytes if is_on_host else available_host_memory()
        self._copies = Copies(host, capacity)

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return self._array_bytes(self._slots.room)

    def slot_of(self, key: str) -> int:
        kept = self._kept.get(key)
        if kept is None or kept.place is None:
            raise UnknownAdapter("the adapter is gone", param="model")
        return kept.place

    def of_rows(self, slots: Tensor) -> LoraRows:
        return self._slots.of_rows(slots)

    def load_first(self, folders: Mapping[str, str]) -> None:
        """Load the adapters that the model begins with, as many at once as have room.

        One that cannot be loaded is left out, with the reason; the model and the others are as if
        it had not been asked for.
        """
        first: dict[str, Adapter] = {}
        """To be put in place, by key."""
        for name, folder in folders.items():
            try:
                source, adapter = self._read_whole(folder)
                self._check_size(adapter.needs)
            except Exception as error:  # whatever a stranger's file can do, the model is served
                self.failed[name] = cause_of(error, name).message
                continue
            key, _ = self._keep(name, source, adapter.needs, adapter.report)
            needs = [one.needs for one in (*first.values(), adapter)]
            if len(needs) <= self._limits.max_slots and not self._exceeds(self._bytes_of(needs)):
                first[key] = adapter
            else:
                self._keep_copy(key, adapter)
        try:
            if first:
                self._fill(first)
        except InsufficientMemory as error:
            for key in first:
                name = self._kept.pop(key).name
                del self._keys[name]
                self.failed[name] = error.message
        for name, reason in self.failed.items():
            log.error("adapter failed to load", adapter=name, folder=folders[name], reason=reason)

    def _fill(self, adapters: Mapping[str, Adapter]) -> None:
        """Put them into the first slots."""
        room = Room.of(len(adapters), [adapter.needs for adapter in adapters.values()])
        grant = self._borrow(room)
        self._take(self._larger_slots(room), grant)
        if self._options.device.type == "cpu":
            use_huge_pages()
        for slot, (key, adapter) in enumerate(adapters.items()):
            self._enter(key, slot, adapter)

    def _steps(self, order: AdapterOrder) -> Steps:
        source, adapter = yield from self._reading(order.folder)
        self._check_size(adapter.needs)
        slot = None
        if self._has_room(order.name, adapter.needs):
            slot = yield from self._free_slot(adapter.needs)
        key, _ = self._keep(order.name, source, adapter.needs, adapter.report)
        if slot is None:
            self._keep_copy(key, adapter)
        else:
            self._enter(key, slot, adapter)
        return adapter.report

    def _return(self, key: str) -> Steps:
        kept, adapter = self._kept[key], self._copies.get(key)
        if adapter is None:
            source, adapter = yield from self._reading(kept.source.folder)
            kept.source.check_unchanged(source)
        if self._fits(kept.size):
            slot = yield from self._free_slot(kept.size)
            self._enter(key, slot, adapter)
        return None

    def _reading(
        self, folder: str
    ) -> Generator["Future[Any] | None", None, tuple[Source, Adapter]]:
        reading = self._thread.submit(self._read, folder)
        yield reading
        source, adapter = reading.result()
        return source, (yield from with_gates(adapter, self._layers, self._options))

    def _free_slot(self, needs: Needs) -> Generator["Future[Any] | None", None, int]:
        """A slot in which such an adapter fits; the arrays are replaced by larger ones if there is
        none. Others may go meanwhile, but none comes."""
        room, slot = self._room_with(needs)
        if room is not self._slots.room:
            yield from self._enlarge(room)
        return slot

    def _enlarge(self, room: Room) -> Generator["Future[Any] | None", None, None]:
        if self._limits.max_bytes is not None:
            self._copies.shrink(self._limits.max_bytes - self._array_bytes(room))
        grant = self._borrow(room)
        try:
            if self._options.device.type == "cpu":
                filling = self._thread.submit(self._larger_slots, room)
                yield filling
                larger = filling.result()
            else:  # in the order of the steps, which the device keeps
                larger = self._larger_slots(room)
        except Exception:
            self._host.give_back(grant)
            raise
        self._take(larger, grant)

    def _room_with(self, needs: Needs, without: Collection[str] = ()) -> tuple[Room, int]:
        """What the arrays must have room for with one adapter more, and the slot that it gets."""
        placed = self._placed(without)
        taken = {kept.place for kept in placed}
        slot = next(number for number in count() if number not in taken)
        if self._slots.room.holds(slot, needs):
            return self._slots.room, slot
        highest = max((kept.place or 0 for kept in placed), default=0)
        sizes = [*(kept.size for kept in placed), needs]
        return Room.of(max(slot, highest) + 1, sizes), slot

    def _fits(self, size: Needs, without: Collection[str] = (), *, more: int = 0) -> bool:
        room, _ = self._room_with(size, without)
        is_free = len(self._placed(without)) < self._limits.max_slots + more
        return is_free and not self._exceeds(self._array_bytes(room))

    def _bytes_of(self, sizes: Iterable[Needs]) -> int:
        every = list(sizes)
        return self._array_bytes(Room.of(len(every), every))

    def _read(self, folder: str) -> tuple[Source, Adapter]:
        place = Path(os.path.expanduser(folder))
        source = Source.of(folder, place / CONFIG, place / WEIGHTS)
        return source, read_adapter(place, self._shapes, self._options.dtype)

    def _read_whole(self, folder: str) -> tuple[Source, Adapter]:
        source, adapter = self._read(folder)
        gating = with_gates(adapter, self._layers, self._options)
        while True:
            try:
                next(gating)
            except StopIteration as end:
                return source, end.value

    def _borrow(self, room: Room) -> Grant:
        device, num_bytes = self._options.device.type, self._array_bytes(room)
        return self._host.borrow(device, "adapters", num_bytes, self._limits.capacity_bytes)

    def _array_bytes(self, room: Room) -> int:
        return room.num_bytes(self._shapes, self._options.dtype.itemsize)

    def _larger_slots(self, room: Room) -> LoraSlots:
        return LoraSlots(self._layers, room, self._options, self._slots)

    def _empty_slots(self) -> LoraSlots:
        return LoraSlots(self._layers, Room(), self._options)

    def _take(self, slots: LoraSlots, grant: Grant | None) -> None:
        """Use other arrays from now on."""
        self._slots = slots
        self.version += 1
        before, self._grant = self._grant, grant
        if before is not None:
            self._host.give_back(before)

    def _enter(self, key: str, slot: int, adapter: Adapter) -> None:
        self._slots.put(slot, adapter)
        self._put(self._kept[key], slot)
        self._keep_copy(key, adapter)

    def _keep_copy(self, key: str, adapter: Adapter) -> None:
        if self._is_in_turns:
            limit = self._limits.max_bytes
            self._copies.keep(key, adapter, None if limit is None else limit - self.num_bytes)

    def _withdraw(self, key: str, place: int) -> None:
        """The arrays stay as they are: whoever comes next fills the slot."""

    def _forget(self, key: str) -> None:
        self._copies.drop(key)
        if not self._kept:
            self._take(self._empty_slots(), None)


def load_adapters(
    folders: Mapping[str, str], model: CausalLM, host: Host, limits: AdapterLimits
) -> AdapterTable | None:
    """The adapters that a model begins with, by the names under which they will be served, and room
    for more; None: it never has any."""
    if not limits.max_adapters:
        return None
    table = AdapterTable(model, host, limits)
    table.load_first(folders)
    return table
