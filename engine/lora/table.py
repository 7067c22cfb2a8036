"""The adapters that a model has, which come and go while it serves.

Files are read and checked, and larger arrays filled, in a thread; what has become ready is put in
place between two steps. An adapter that leaves, or is replaced, keeps its slot until the last
request that began with it has ended.
"""

import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import structlog
from torch import Tensor

from engine.adapter_orders import AdapterOrder, AdapterReport, Answer
from engine.errors import (
    EngineError,
    InsufficientMemory,
    ModelConflict,
    ModelLoadError,
    TooManyAdapters,
    UnknownAdapter,
)
from engine.host import Grant, Host
from engine.lora.dora import with_gates
from engine.lora.peft_files import Adapter, read_adapter
from engine.lora.slots import LoraRows, LoraSlots, Needs, Room
from engine.models.causal_lm import CausalLM
from engine.models.layers.linear import Linear
from engine.runtime.huge_pages import use_huge_pages

Steps = Generator["Future[Any] | None", None, AdapterReport]
"""Of a load; each gives what the next one has to wait for, None: for a step of the engine."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Kept:
    """An adapter in its slot."""

    name: str
    slot: int
    needs: Needs
    is_leaving: bool = False
    answer: Answer | None = None
    """To be told when it is gone."""


@dataclass(slots=True)
class _Load:
    order: AdapterOrder
    steps: Steps
    answer: Answer
    awaited: "Future[Any] | None" = None

    @property
    def is_waiting(self) -> bool:
        return self.awaited is not None and not self.awaited.done()


class AdapterTable:
    """`engine.models.adapters.Adapters`, and the engine's `engine.adapter_orders.AdapterShelf`.

    Invariant: kept adapters are in different slots, which the arrays have.

    Args:
        max_adapters: as many names there may be at a time.
        capacity_bytes: see `Host.reserve`.

    Attributes:
        version: of the arrays; what was recorded with other ones is worthless.
        failed: of the first adapters those that could not be loaded, by name, and why, in words
            that hold no path.
    """

    def __init__(
        self, model: CausalLM, host: Host, *, max_adapters: int, capacity_bytes: int
    ) -> None:
        self.version = 0
        self.failed: dict[str, str] = {}
        self._host = host
        self._options = model.options
        self._max_adapters = max_adapters
        self._capacity_bytes = capacity_bytes
        self._layers = [module for module in model.modules() if isinstance(module, Linear)]
        self._shapes = {
            path: (shard.out_features, layer.in_features)
            for layer in self._layers
            for path, shard in zip(layer.shard_paths, layer.shards, strict=True)
        }
        self._slots = self._empty_slots()
        self._grant: Grant | None = None
        self._keys: dict[str, str] = {}
        self._kept: dict[str, _Kept] = {}
        self._num_ever = count()
        self._loads: deque[_Load] = deque()
        self._thread = ThreadPoolExecutor(1, "load-adapters")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._keys)

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return self._bytes_of(self._slots.room)

    def key_of(self, name: str) -> str:
        if name not in self._keys:
            raise UnknownAdapter(f"the model has no adapter {name!r}", param="model")
        return self._keys[name]

    def slot_of(self, key: str) -> int:
        if key not in self._kept:
            raise UnknownAdapter("the adapter is gone", param="model")
        return self._kept[key].slot

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
                self.failed[name] = _cause(error, name).message
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

    def load(self, order: AdapterOrder, answer: Answer) -> None:
        self._loads.append(_Load(order, self._steps(order), answer))

    def unload(self, name: str, answer: Answer) -> None:
        key = self._keys.pop(name, None)
        if key is None:
            answer(UnknownAdapter(f"the model has no adapter {name!r}", param="lora_name"))
            return
        self._kept[key].is_leaving = True
        self._kept[key].answer = answer

    def has_work(self) -> bool:
        return bool(self._loads) or any(kept.is_leaving for kept in self._kept.values())

    def advance(self, in_use: Callable[[], Collection[str]]) -> None:
        self._let_go(in_use)
        while self._loads and not self._loads[0].is_waiting:
            load = self._loads[0]
            try:
                load.awaited = next(load.steps)
                if load.awaited is None:
                    return
                continue
            except StopIteration as end:
                outcome: AdapterReport | EngineError = end.value
            except Exception as error:  # whatever a stranger's file can do, the model goes on
                outcome = _cause(error, load.order.name)
                log.error(
                    "adapter failed to load",
                    adapter=load.order.name,
                    folder=load.order.folder,
                    reason=outcome.message,
                )
            self._loads.popleft()
            load.answer(outcome)

    def wait(self, seconds: float) -> None:
        if self._loads and self._loads[0].awaited is not None:
            wait([self._loads[0].awaited], timeout=seconds)

    def _steps(self, order: AdapterOrder) -> Steps:
        """Load one adapter. Nothing has changed until the last step, in which nothing can fail."""
        self._check_name(order)
        reading = self._thread.submit(self._read, order.folder)
        yield reading
        adapter = yield from with_gates(reading.result(), self._layers, self._options)
        # Others may have gone meanwhile, but none has come.
        taken = {kept.slot for kept in self._kept.values()}
        slot = next(number for number in count() if number not in taken)
        if not self._slots.room.holds(slot, adapter.needs):
            yield from self._enlarge(slot, adapter.needs)
        return self._enter(order.name, slot, adapter)

    def _check_name(self, order: AdapterOrder) -> None:
        """
        Raises:
            ModelConflict: there is one of that name, and it is not to be replaced.
            TooManyAdapters: there are as many as may be, or they still have requests.
        """
        replaces = order.name in self._keys
        if replaces and not order.replaces:
            raise ModelConflict(f"an adapter {order.name!r} is loaded already", param="lora_name")
        if len(self._kept) >= self._max_adapters + replaces:
            num_leaving = sum(kept.is_leaving for kept in self._kept.values())
            leaving = f" ({num_leaving} of them until their requests end)" if num_leaving else ""
            raise TooManyAdapters(
                f"the model has {len(self._kept)} adapters{leaving} and max_loras is "
                f"{self._max_adapters}; unload one, or raise max_loras",
                param="lora_name",
            )

    def _enlarge(self, slot: int, needs: Needs) -> Generator["Future[Any] | None", None, None]:
        """Replace the arrays by those that the kept adapters and a new one need."""
        highest_slot = max((kept.slot for kept in self._kept.values()), default=0)
        room = Room.of(
            max(slot, highest_slot) + 1, [*(kept.needs for kept in self._kept.values()), needs]
        )
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
        before = self._keys.get(name)
        if before is not None:
            self._kept[before].is_leaving = True
        # No name has such a character in it.
        key = self._keys[name] = f"{name}\0{next(self._num_ever)}"
        self._kept[key] = _Kept(name, slot, adapter.needs)
        report = adapter.report
        log.info(
            "adapter loaded",
            adapter=name,
            layers=report.num_layers,
            ranks=list(report.ranks),
            left_out=report.num_left_out,
        )
        if report.left_out:
            log.warning(
                "layers of an adapter that the model has not are left out",
                adapter=name,
                names=", ".join(report.left_out),
                number=report.num_left_out,
            )
        return report

    def _let_go(self, in_use: Callable[[], Collection[str]]) -> None:
        """Free the slots of adapters that leave and that no request has any more."""
        leaving = [key for key, kept in self._kept.items() if kept.is_leaving]
        if not leaving:
            return
        used = in_use()
        for key in leaving:
            if key in used:
                continue
            kept = self._kept.pop(key)
            log.info("adapter unloaded", adapter=kept.name)
            if not self._kept:
                self._take(self._empty_slots(), None)
            if kept.answer is not None:
                kept.answer(None)


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


def _cause(error: Exception, name: str) -> EngineError:
    """What to say of a load that failed."""
    if isinstance(error, EngineError):
        return error
    log.exception("adapter failed to load", adapter=name, exc_info=error)
    return ModelLoadError(f"{type(error).__name__} while it was loaded")
