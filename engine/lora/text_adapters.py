"""The adapters that a text model has, side by side in arrays that grow in a thread."""

import contextlib
import os
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from engine.contract.host import Grant, Host
from engine.errors import InsufficientMemory, UnknownAdapter
from engine.lora.copies import Copies
from engine.lora.dora import with_gates
from engine.lora.file_parts import WEIGHTS
from engine.lora.loaded_adapters import AdapterLimits, Kept, LoadedAdapters, ReadAdapter, finish
from engine.lora.numbers import AdapterNumbers
from engine.lora.own_modules import OwnModules
from engine.lora.peft_config import CONFIG
from engine.lora.peft_files import Adapter, AdapterSize, ModelShapes, plan_adapter
from engine.lora.slots import CopiesOf, LoraRows, LoraSlots, Room
from engine.lora.source import Source
from engine.models.causal_lm import CausalLM
from engine.models.layers.embedding import LmHead, TokenEmbedding
from engine.models.layers.linear import Linear
from engine.models.layers.norm import RmsNorm
from engine.runtime.memory import available_host_memory
from engine.runtime.side_work import SIDE_WORK

SPARE_BYTES = 16 << 20
"""Bytes of unused slots when arrays are made while the model serves. A quarter of the slots is
taken if that is more, so that the time per load does not grow with their number."""

Result = TypeVar("Result")


class _Ready(NamedTuple):
    """The parts with which an adapter is put in place."""

    slot: int
    """The slot with the adapter's numbers."""
    made: Mapping[str, Any] = MappingProxyType({})
    """The adapter's whole modules."""
    grant: Grant | None = None
    """The grant of the modules' memory."""


class TextAdapters(LoadedAdapters[AdapterSize, int]):
    """An `engine.models.adapters.Adapters`, and the engine's
    `engine.contract.adapter_orders.ServedAdapters`.

    Places are slots of the arrays. Where there may be more adapters than slots, or memory is
    limited, copies of adapters are kept in the host's memory while there is room; others are read
    from their files again.

    Invariant: adapters in place are in different slots of the arrays.

    Attributes:
        version: the version of the arrays; steps recorded with another one must not be replayed.
    """

    def __init__(
        self, model: CausalLM, host: Host, limits: AdapterLimits, *, is_packed: bool = False
    ) -> None:
        super().__init__(limits, host, model.options.device.type)
        # Steps use all cores: with a second thread, each of hundreds of small operations would wait
        # at its end for a thread that gets no core.
        one_thread = partial(torch.set_num_threads, 1)
        self._thread = ThreadPoolExecutor(1, "load-adapters", initializer=one_thread)
        self.version = 0
        self._options = model.options
        self._numbers = AdapterNumbers(model.options.dtype, is_packed)
        self._layers: list[Linear | LmHead] = [
            module
            for module in model.modules()
            if isinstance(module, Linear) and module.takes_adapters
        ]
        ends = list(model.modules()) if model.ends_take_adapters else []
        self._layers += [module for module in ends if isinstance(module, LmHead)]
        self._embeddings = [module for module in ends if isinstance(module, TokenEmbedding)]
        norms = [one for one in ends if isinstance(one, RmsNorm) and one.takes_adapters]
        heads = [module for module in ends if isinstance(module, LmHead)]
        self._own = OwnModules([*self._embeddings, *norms, *heads])
        self._copies_in_place: CopiesOf = {}
        self._shapes = ModelShapes(
            linear={
                path: (shard.out_features, layer.in_features)
                for layer in self._layers
                for path, shard in zip(layer.shard_paths, layer.shards, strict=True)
            },
            tables={one.path: (one.shape[1], one.shape[0]) for one in self._embeddings},
            copies=self._own.shapes,
        )
        self._heads = [head.path for head in heads]
        self._is_on_host = self._options.device.type == "cpu"
        self._slots = self._empty_slots()
        self._grants: list[Grant] = []
        """Grants of the arrays' memory."""
        self._is_filling = False
        """Whether a slot is being filled with an adapter that is not kept yet."""
        capacity = limits.capacity_bytes if self._is_on_host else available_host_memory()
        self._copies = Copies(host, capacity)

    @property
    def num_bytes(self) -> int:
        """Memory that adapters in place take: the arrays, and whole modules of their own."""
        return self._array_bytes(self._slots.room) + self._own_bytes(self._placed())

    @property
    def change_logits(self) -> bool:
        needs = self._slots.room.needs
        return any(path in needs or path in self._copies_in_place for path in self._heads)

    def slot_of(self, key: str) -> int:
        kept = self._kept.get(key)
        if kept is None or kept.place is None:
            raise UnknownAdapter("the adapter has been unloaded", param="model")
        return kept.place

    def of_rows(self, slots: Tensor) -> LoraRows:
        return self._slots.of_rows(slots, self._copies_in_place)

    def load_first(self, folders: Mapping[str, str]) -> None:
        """Load the adapters that the model begins with, as many at once as fit.

        One that cannot be loaded is left out, with the reason, and affects neither the model nor
        the others.
        """
        first: dict[str, ReadAdapter] = {}
        """The adapters to put in place, by key."""
        for name, folder in folders.items():
            try:
                read = finish(self._reading(folder, is_new=True))
            except Exception as error:  # a bad file must not stop the model
                self._leave_out(name, folder, error)
                continue
            key = self._keep(name, read)
            sizes = [one.size for one in (*first.values(), read)]
            if len(sizes) <= self._limits.max_slots and not self._exceeds(self._bytes_of(sizes)):
                first[key] = read
            else:
                self._keep_copy(key, read)
        room = Room.of(len(first), [read.size.needs for read in first.values()])
        for key, read in first.items():
            try:
                if self._slots.room is not room:
                    grant = self._borrow(self._array_bytes(room))
                    self._take(self._new_slots(room), grant)
                self._enter(key, read, finish(self._making_ready(read)))
            except InsufficientMemory as error:
                name = self._kept.pop(key).name
                del self._keys[name]
                self._free_arrays()
                self._leave_out(name, folders[name], error)

    def _making_ready(self, read: ReadAdapter) -> Generator["Future[Any] | None", None, "_Ready"]:
        """Fill a slot and make the adapter's own modules. The arrays are replaced by larger ones if
        needed. Meanwhile other adapters may go, but none comes."""
        adapter: Adapter = read.numbers
        room, slot = self._room_with(adapter.size)
        taken = self._own_bytes(self._placed()) + adapter.size.copy_bytes
        if self._limits.max_bytes is not None:
            self._copies.shrink(self._limits.max_bytes - taken - self._array_bytes(room))
        arrays = own = None
        self._is_filling = True
        try:
            if self._is_longer(room):
                more = self._array_bytes(room) - self._array_bytes(self._slots.room)
                arrays = self._borrow(more)
            elif room is not self._slots.room:
                room, arrays = self._borrow_arrays(room, taken)
            own = self._borrow(adapter.size.copy_bytes) if adapter.copies else None
            fill = partial(self._filled, room, slot, adapter)
            # On a device the copies are queued in the order of the steps.
            slots = (yield from self._aside(fill)) if self._is_on_host else fill()
            make = partial(self._own.make, adapter.copies)
            made = (yield from self._aside(make)) if own is not None else {}
        except Exception:
            self._give_back(arrays, own)
            self._is_filling = False
            self._free_arrays()
            raise
        self._is_filling = False
        if slots is not self._slots:
            self._take(slots, arrays)
        elif arrays is not None:
            slots.room = room
            self._grants.append(arrays)
        return _Ready(slot, made, own)

    def _filled(self, room: Room, slot: int, adapter: Adapter) -> LoraSlots:
        """Return arrays of that size in which the unused slot holds the adapter."""
        stay = room is self._slots.room or self._is_longer(room)
        slots = self._slots if stay else self._new_slots(room, self._slots)
        slots.put(slot, adapter)
        return slots

    def _is_longer(self, room: Room) -> bool:
        """Whether the present arrays can grow to that size by adding slots."""
        here = self._slots
        is_alike = room.needs is here.room.needs
        return is_alike and here.room.num_slots < room.num_slots <= here.capacity

    def _borrow_arrays(self, room: Room, taken_bytes: int) -> tuple[Room, Grant]:
        """Borrow memory for arrays with some spare slots, if no copy has to be dropped for them:
        adapters that get a spare slot leave the arrays where they are. On a CPU arrays never
        move."""
        if self._is_on_host:
            return room, self._borrow(self._array_bytes(room))
        per_slot = max(1, self._array_bytes(replace(room, num_slots=1)))
        most = min(2 * room.num_slots, self._limits.max_slots)
        more = min(most - room.num_slots, max(SPARE_BYTES // per_slot, room.num_slots // 4))
        wider = replace(room, num_slots=room.num_slots + max(0, more))
        num_bytes = self._array_bytes(wider)
        if not self._exceeds(taken_bytes + num_bytes + self._copies.num_bytes):
            with contextlib.suppress(InsufficientMemory):
                return wider, self._borrow(num_bytes)
        return room, self._borrow(self._array_bytes(room))

    def _reading(
        self, folder: str, *, is_new: bool = False
    ) -> Generator["Future[Any] | None", None, ReadAdapter]:
        source, adapter = yield from self._aside(partial(self._read, folder, is_new=is_new))
        if adapter.has_magnitudes:
            adapter = yield from with_gates(adapter, self._layers, self._options)
            adapter = yield from self._aside(partial(self._kept_as, adapter))
        return ReadAdapter(source, adapter.size, adapter.report, adapter)

    def _aside(self, work: Callable[[], Result]) -> Generator["Future[Any] | None", None, Result]:
        """Run the work in the thread, to which steps leave a core."""
        doing = SIDE_WORK.submit(self._thread, work)
        yield doing
        return doing.result()

    def _room_with(self, size: AdapterSize, without: Collection[str] = ()) -> tuple[Room, int]:
        """The size that the arrays need with one more adapter, and that adapter's slot."""
        placed = self._placed(without)
        taken = {kept.place for kept in placed}
        slot = next(number for number in count() if number not in taken)
        room, copy_bytes = self._slots.room, self._own_bytes(placed) + size.copy_bytes
        if room.holds(slot, size.needs) and not self._exceeds(self._array_bytes(room) + copy_bytes):
            return room, slot
        longer = replace(room, num_slots=slot + 1)
        if (
            self._is_longer(longer)
            and longer.holds(slot, size.needs)
            and not self._exceeds(self._array_bytes(longer) + copy_bytes)
        ):
            return longer, slot
        highest = max((kept.place or 0 for kept in placed), default=0)
        needs = [*(kept.size.needs for kept in placed), size.needs]
        return Room.of(max(slot, highest) + 1, needs), slot

    def _bytes_with(self, size: AdapterSize, without: Collection[str]) -> int:
        room, _ = self._room_with(size, without)
        own_bytes = self._own_bytes(self._placed(without)) + size.copy_bytes
        return self._array_bytes(room) + own_bytes

    def _bytes_of(self, sizes: Iterable[AdapterSize]) -> int:
        every = list(sizes)
        room = Room.of(len(every), [size.needs for size in every])
        return self._array_bytes(room) + sum(size.copy_bytes for size in every)

    def _own_bytes(self, placed: Iterable[Kept[AdapterSize, int]]) -> int:
        return sum(kept.size.copy_bytes for kept in placed)

    def _read(self, folder: str, *, is_new: bool) -> tuple[Source, Adapter]:
        """Read an adapter, in any thread, as it is kept, unless it still has magnitudes. For a new
        one, also compute the files' digest."""
        place = Path(os.path.expanduser(folder))
        files = place / CONFIG, place / WEIGHTS
        source = Source.of(folder, *files)
        with source.unchanged_by_the_end(*files):
            if is_new:
                source = source.with_digest({file.name: file for file in files})
            plan = plan_adapter(place, self._shapes, self._options.dtype)
            self._check_size(plan.size)
            adapter = plan.read()
            return source, adapter if adapter.has_magnitudes else self._kept_as(adapter)

    def _kept_as(self, adapter: Adapter) -> Adapter:
        """Convert an adapter to the format in which it is kept, in any thread."""
        return self._numbers.kept(adapter, self._shapes.linear)

    def _array_bytes(self, room: Room) -> int:
        return room.num_bytes(self._shapes, self._numbers)

    def _empty_slots(self) -> LoraSlots:
        return self._new_slots(Room())

    def _new_slots(self, room: Room, before: LoraSlots | None = None) -> LoraSlots:
        layers = [*self._layers, *self._embeddings]
        make = partial(LoraSlots, layers, room, self._numbers, self._options.device, before)
        if self._is_on_host and room.needs:
            with contextlib.suppress(OSError):  # there may not be enough address space
                # One more, since an adapter may replace another that still has requests.
                return make(most_slots=self._limits.max_slots + 1)
        return make()

    def _take(self, slots: LoraSlots, grant: Grant | None) -> None:
        """Use other arrays from now on."""
        self._slots = slots
        self.version += 1
        before, self._grants = self._grants, [] if grant is None else [grant]
        self._give_back(*before)

    def _enter(self, key: str, read: ReadAdapter, place: _Ready) -> None:
        if place.grant is not None:
            self._own.put(place.slot, place.made, place.grant)
            self._changed_copies()
        self._put(self._kept[key], place.slot)
        self._keep_copy(key, read)

    def _changed_copies(self) -> None:
        """Update the map of whole modules, on which recorded steps depend."""
        self._copies_in_place = self._own.copies
        self.version += 1

    def _copy_of(self, key: str) -> ReadAdapter | None:
        copy = self._copies.get(key)
        if copy is None:
            return None
        return ReadAdapter(self._kept[key].source, copy.size, copy.report, copy)

    def _keep_copy(self, key: str, read: ReadAdapter) -> None:
        if self._is_in_turns:
            limit = self._limits.max_bytes
            most_bytes = None if limit is None else limit - self.num_bytes
            self._copies.keep(key, read.numbers, most_bytes)

    def _withdraw(self, key: str, place: int) -> None:
        """Leave the arrays unchanged: the next adapter refills the slot."""
        grant = self._own.drop(place)
        if grant is not None:
            self._give_back(grant)
            self._changed_copies()

    def _forget(self, key: str) -> None:
        self._copies.drop(key)
        self._free_arrays()

    def _free_arrays(self) -> None:
        """Give the arrays' memory back if there are no adapters."""
        if not self._kept and not self._is_filling:
            self._take(self._empty_slots(), None)


def load_adapters(
    folders: Mapping[str, str],
    model: CausalLM,
    host: Host,
    limits: AdapterLimits,
    *,
    is_packed: bool = False,
) -> TextAdapters | None:
    """Load the adapters that a model begins with, by the names under which they will be served, and
    make room for more. None: the model never has any.

    Args:
        is_packed: whether adapters are kept in 8 bits.
    """
    if not limits.max_adapters:
        return None
    adapters = TextAdapters(model, host, limits, is_packed=is_packed)
    adapters.load_first(folders)
    return adapters
