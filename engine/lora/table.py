"""The adapters that a text model has, side by side in arrays, which grow in a thread."""

import os
from collections.abc import Generator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import structlog
from torch import Tensor

from engine.adapter_orders import AdapterOrder, AdapterReport
from engine.errors import InsufficientMemory, UnknownAdapter
from engine.host import Grant, Host
from engine.lora.dora import with_gates
from engine.lora.peft_files import Adapter, read_adapter
from engine.lora.shelf import Shelf, Steps, cause_of
from engine.lora.slots import LoraRows, LoraSlots, Needs, Room
from engine.models.causal_lm import CausalLM
from engine.models.layers.linear import Linear
from engine.runtime.huge_pages import use_huge_pages

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Slot:
    number: int
    needs: Needs


class AdapterTable(Shelf[_Slot]):
    """`engine.models.adapters.Adapters`, and the engine's `engine.adapter_orders.AdapterShelf`.

    Invariant: kept adapters are in different slots, which the arrays have.

    Args:
        max_adapters: as many names there may be at a time.
        capacity_bytes: see `Host.reserve`.

    Attributes:
        version: of the arrays; what was recorded with other ones is worthless.
    """

    def __init__(
        self, model: CausalLM, host: Host, *, max_adapters: int, capacity_bytes: int
    ) -> None:
        super().__init__(max_adapters=max_adapters)
        self.version = 0
        self._host = host
        self._options = model.options
        self._capacity_bytes = capacity_bytes
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

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return self._bytes_of(self._slots.room)

    def slot_of(self, key: str) -> int:
        if key not in self._kept:
            raise UnknownAdapter("the adapter is gone", param="model")
        return self._kept[key].place.number

    def of_rows(self, slots: Tensor) -> LoraRows:
        return self._slots.of_rows(slots)

    def load_first(self, folders: Mapping[str, str]) -> None:
        """Load the adapters that the model begins with, all of them at once.

        One that cannot be loaded is left out, with the reason; the model and the others are as if
        it had not been asked for.
        """
        adapters: dict[str, Adapter] = {}
        for name, folder in folders.items():
            try:
                adapters[name] = self._read_whole(folder)
            except Exception as error:  # whatever a stranger's file can do, the model is served
                self.failed[name] = cause_of(error, name).message
        room = Room.of(len(adapters), [adapter.needs for adapter in adapters.values()])
        try:
            if adapters:
                grant = self._borrow(room)
                self._take(self._larger_slots(room), grant)
        except InsufficientMemory as error:
            self.failed |= dict.fromkeys(adapters, error.message)
            adapters = {}
        if adapters and self._options.device.type == "cpu":
            use_huge_pages()
        for name, reason in self.failed.items():
            log.error("adapter failed to load", adapter=name, folder=folders[name], reason=reason)
        for slot, (name, adapter) in enumerate(adapters.items()):
            self._enter(name, slot, adapter)

    def _steps(self, order: AdapterOrder) -> Steps:
        reading = self._thread.submit(self._read, order.folder)
        yield reading
        adapter = yield from with_gates(reading.result(), self._layers, self._options)
        # Others may have gone meanwhile, but none has come.
        taken = {kept.place.number for kept in self._kept.values()}
        slot = next(number for number in count() if number not in taken)
        if not self._slots.room.holds(slot, adapter.needs):
            yield from self._enlarge(slot, adapter.needs)
        return self._enter(order.name, slot, adapter)

    def _enlarge(self, slot: int, needs: Needs) -> Generator["Future[Any] | None", None, None]:
        """Replace the arrays by those that the kept adapters and a new one need."""
        slots = [kept.place for kept in self._kept.values()]
        highest = max((one.number for one in slots), default=0)
        room = Room.of(max(slot, highest) + 1, [*(one.needs for one in slots), needs])
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

    def _read(self, folder: str) -> Adapter:
        place = Path(os.path.expanduser(folder))
        return read_adapter(place, self._shapes, self._options.dtype)

    def _read_whole(self, folder: str) -> Adapter:
        gating = with_gates(self._read(folder), self._layers, self._options)
        while True:
            try:
                next(gating)
            except StopIteration as end:
                adapter: Adapter = end.value
                return adapter

    def _borrow(self, room: Room) -> Grant:
        device = self._options.device.type
        return self._host.borrow(device, "adapters", self._bytes_of(room), self._capacity_bytes)

    def _bytes_of(self, room: Room) -> int:
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

    def _enter(self, name: str, slot: int, adapter: Adapter) -> AdapterReport:
        self._slots.put(slot, adapter)
        self._keep(name, _Slot(slot, adapter.needs), adapter.report)
        return adapter.report

    def _forget(self, key: str, place: _Slot) -> None:
        if not self._kept:
            self._take(self._empty_slots(), None)


def load_adapters(
    folders: Mapping[str, str],
    model: CausalLM,
    host: Host,
    capacity_bytes: int,
    *,
    max_adapters: int,
) -> AdapterTable | None:
    """The adapters that a model begins with, by the names under which they will be served, and room
    for more; None: it never has any."""
    if not max_adapters:
        return None
    table = AdapterTable(model, host, max_adapters=max_adapters, capacity_bytes=capacity_bytes)
    table.load_first(folders)
    return table
