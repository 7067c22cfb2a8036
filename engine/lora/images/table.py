"""The adapters that an image model has now."""

import os
from collections.abc import Collection, Generator, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import structlog
import torch

from engine.contract.adapter_orders import AdapterOrder, NoAdapters
from engine.contract.host import Grant, Host
from engine.errors import ModelLoadError
from engine.lora.images.changes import Change
from engine.lora.images.contents import find_file
from engine.lora.images.dora import Gated, Lengths, is_plain
from engine.lora.images.files import Plan, plan_adapter, read_changes
from engine.lora.images.layers import AdaptedLayers, Place
from engine.lora.images.names import layer_names
from engine.lora.peft_config import CONFIG
from engine.lora.peft_files import WEIGHTS
from engine.lora.shelf import AdapterLimits, Shelf, Steps, cause_of
from engine.lora.source import Source

log = structlog.get_logger(__name__)


class _Read(NamedTuple):
    """An adapter that has been read completely, in borrowed memory."""

    source: Source
    plan: Plan
    changes: Mapping[Place, Change | Gated]
    grant: Grant


class ImageAdapterTable(Shelf[int, Grant]):
    """The adapters of an image model, each with weights in memory that is borrowed while it is in
    place. An adapter that comes back is read from its files again.

    Args:
        dtype: the model's dtype.
    """

    asked_by = "loras"

    def __init__(
        self, adapted: AdaptedLayers, host: Host, limits: AdapterLimits, *, dtype: torch.dtype
    ) -> None:
        super().__init__(limits)
        self._adapted = adapted
        self._host = host
        self._dtype = dtype
        self._names = layer_names(adapted)

    def load_first(self, places: Mapping[str, str]) -> None:
        """Load the adapters that the model begins with. One that cannot be loaded is left out, with
        the reason, and affects neither the model nor the others."""
        for name, place in places.items():
            try:
                steps = self._steps(AdapterOrder(name=name, folder=place))
                while True:
                    try:
                        awaited = next(steps)
                    except StopIteration:
                        break
                    if awaited is not None:
                        awaited.exception()
            except Exception as error:  # a bad file must not stop the model
                reason = self.failed[name] = cause_of(error, name).message
                log.error("adapter failed to load", adapter=name, folder=place, reason=reason)

    def _steps(self, order: AdapterOrder) -> Steps:
        source, plan, changes, grant = yield from self._reading(order.folder, is_new=True)
        has_room = self._has_room(order.name, self._size(plan))
        key, _ = self._keep(order.name, source, self._size(plan), plan.report)
        if has_room:
            self._enter(key, changes, grant)
        else:  # it was read only to check it
            self._host.give_back(grant)
        return replace(plan.report, digest=source.digest)

    def _return(self, key: str) -> Steps:
        kept = self._kept[key]
        source, _, changes, grant = yield from self._reading(kept.source.folder)
        try:
            kept.source.check_unchanged(source)
        except ModelLoadError:
            self._host.give_back(grant)
            raise
        if self._fits(kept.size):
            self._enter(key, changes, grant)
        else:
            self._host.give_back(grant)
        return None

    def _reading(
        self, place: str, *, is_new: bool = False
    ) -> Generator["Future[Any] | None", None, _Read]:
        planning = self._thread.submit(self._plan, place, is_new)
        yield planning
        source, plan = planning.result()
        self._check_size(self._size(plan))
        grant = self._borrow(self._size(plan))
        try:
            reading = self._thread.submit(self._read, source, plan)
            yield reading
            changes = yield from self._gating(reading.result())
            return _Read(source, plan, changes, grant)
        except Exception:
            self._host.give_back(grant)
            raise

    def _gating(
        self, changes: Mapping[Place, Change | Lengths]
    ) -> Generator["Future[Any] | None", None, dict[Place, Change | Gated]]:
        """Compute the gates from DoRA's lengths: with plain weights in the thread, with packed ones
        between steps."""
        done: dict[Place, Change | Gated] = {
            place: one for place, one in changes.items() if not isinstance(one, Lengths)
        }
        waiting = {place: one for place, one in changes.items() if isinstance(one, Lengths)}
        modules = {place: self._adapted.modules(place) for place in waiting}
        plain = [place for place in waiting if all(map(is_plain, modules[place]))]
        if plain:
            found = self._thread.submit(
                lambda: {place: waiting[place].gated(modules[place]) for place in plain}
            )
            yield found
            done |= found.result()
        for place in [place for place in waiting if place not in plain]:
            for gated in waiting[place].gating(modules[place], self._dtype):
                if gated is not None:
                    done[place] = gated
                yield None
        return done

    def _fits(self, size: int, without: Collection[str] = (), *, more: int = 0) -> bool:
        sizes = [kept.size for kept in self._placed(without)]
        is_free = len(sizes) < self._limits.max_slots + more
        return is_free and not self._exceeds(self._bytes_of([*sizes, size]))

    def _bytes_of(self, sizes: Iterable[int]) -> int:
        return sum(sizes)

    def _size(self, plan: Plan) -> int:
        return plan.num_weights * self._dtype.itemsize

    def _plan(self, place: str, is_new: bool) -> tuple[Source, Plan]:
        """Examine an adapter's file; for a new adapter, also compute the files' digest."""
        path = Path(os.path.expanduser(place))
        file = find_file(path)
        source = _source(place, file)
        plan = plan_adapter(path, self._names, self._adapted.layers)
        if is_new:
            files = [file, file.parent / CONFIG] if file.name == WEIGHTS else [file]
            source = source.with_digest({one.name: one for one in files})
        return source, plan

    def _read(self, source: Source, plan: Plan) -> dict[Place, Change | Lengths]:
        try:
            return read_changes(plan, self._dtype, self._adapted.device)
        finally:  # also after a failure
            source.check_unchanged(_source(source.folder, plan.file), since="reading them began")

    def _borrow(self, num_bytes: int) -> Grant:
        device = self._adapted.device.type
        return self._host.borrow(device, "adapters", num_bytes, self._limits.capacity_bytes)

    def _enter(self, key: str, changes: Mapping[Place, Change | Gated], grant: Grant) -> None:
        self._adapted.put(key, changes)
        self._put(self._kept[key], grant)

    def _withdraw(self, key: str, place: Grant) -> None:
        self._adapted.drop(key)
        self._host.give_back(place)

    def _forget(self, key: str) -> None:
        """Do nothing, since nothing is kept beside the places."""


def _source(place: str, file: Path) -> Source:
    return Source.of(place, file, file.parent / CONFIG)


def load_image_adapters(
    places: Mapping[str, str],
    adapted: AdaptedLayers,
    host: Host,
    limits: AdapterLimits,
    *,
    dtype: torch.dtype,
) -> "ImageAdapterTable | NoAdapters":
    """Load the adapters that a model begins with, by the names under which they will be served, and
    make room for more."""
    if not limits.max_adapters:
        return NoAdapters()
    table = ImageAdapterTable(adapted, host, limits, dtype=dtype)
    table.load_first(places)
    return table
