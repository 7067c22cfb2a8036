"""The adapters that an image model has now."""

import os
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch

from engine.contract.adapter_orders import AdapterOrder, NoAdapters
from engine.contract.host import Grant, Host
from engine.lora.file_parts import WEIGHTS
from engine.lora.images.changes import Change
from engine.lora.images.contents import find_file
from engine.lora.images.files import Plan, plan_adapter, read_changes
from engine.lora.images.gated_change import Gated, Lengths, is_plain
from engine.lora.images.layers import AdaptedLayers, Place
from engine.lora.images.names import layer_names
from engine.lora.loaded_adapters import AdapterLimits, LoadedAdapters, ReadAdapter, finish
from engine.lora.peft_config import CONFIG
from engine.lora.source import Source


class ImageAdapters(LoadedAdapters[int, Grant]):
    """The adapters of an image model, each with weights in memory that is reserved while it is in
    place. An adapter that is needed again is read from its files again.

    Args:
        dtype: the model's dtype.
    """

    asked_by = "loras"

    def __init__(
        self, adapted: AdaptedLayers, host: Host, limits: AdapterLimits, *, dtype: torch.dtype
    ) -> None:
        super().__init__(limits, host, adapted.device.type)
        self._adapted = adapted
        self._dtype = dtype
        self._names = layer_names(adapted)

    def load_first(self, places: Mapping[str, str]) -> None:
        """Load the adapters that the model begins with. One that cannot be loaded is left out, with
        the reason, and affects neither the model nor the others."""
        for name, place in places.items():
            try:
                finish(self._steps(AdapterOrder(name=name, folder=place)))
            except Exception as error:  # a bad file must not stop the model
                self._leave_out(name, place, error)

    def _reading(
        self, folder: str, *, is_new: bool = False
    ) -> Generator["Future[Any] | None", None, ReadAdapter]:
        source, plan = yield from self._aside(partial(self._plan, folder, is_new))
        size = plan.num_weights * self._dtype.itemsize
        self._check_size(size)
        grant = self._borrow(size)
        try:
            changes = yield from self._aside(partial(self._read, source, plan))
            for place, one in changes.items():
                if isinstance(one, Lengths):
                    changes[place] = yield from self._gating(place, one)
        except Exception:
            self._give_back(grant)
            raise
        return ReadAdapter(source, size, plan.report, changes, grant)

    def _gating(self, place: Place, lengths: Lengths) -> Generator[None, None, Gated]:
        return lengths.gating(self._adapted.modules(place), self._dtype)

    def _bytes_of(self, sizes: Iterable[int]) -> int:
        return sum(sizes)

    def _plan(self, place: str, is_new: bool) -> tuple[Source, Plan]:
        """Examine an adapter's file; for a new adapter, also compute the files' digest."""
        path = Path(os.path.expanduser(place))
        file = find_file(path)
        source = Source.of(place, *_files(file))
        plan = plan_adapter(path, self._names, self._adapted.layers)
        if is_new:
            files = _files(file) if file.name == WEIGHTS else (file,)
            source = source.with_digest({one.name: one for one in files})
        return source, plan

    def _read(self, source: Source, plan: Plan) -> dict[Place, Change | Gated | Lengths]:
        """Read an adapter in the thread, with the gates of modules whose weights can be read."""
        changes: dict[Place, Change | Gated | Lengths] = {}
        with source.unchanged_by_the_end(*_files(plan.file)):
            changes |= read_changes(plan, self._dtype, self._adapted.device)
        for place, one in changes.items():
            if isinstance(one, Lengths) and all(map(is_plain, self._adapted.modules(place))):
                changes[place] = finish(self._gating(place, one))
        return changes

    def _enter(self, key: str, read: ReadAdapter, place: Grant) -> None:
        self._adapted.put(key, read.numbers)
        self._put(self._kept[key], place)

    def _withdraw(self, key: str, place: Grant) -> None:
        self._adapted.drop(key)
        self._host.give_back(place)


def _files(file: Path) -> tuple[Path, Path]:
    return file, file.parent / CONFIG


def load_image_adapters(
    places: Mapping[str, str],
    adapted: AdaptedLayers,
    host: Host,
    limits: AdapterLimits,
    *,
    dtype: torch.dtype,
) -> "ImageAdapters | NoAdapters":
    """Load the adapters that a model begins with, by the names under which they will be served, and
    make room for more."""
    if not limits.max_adapters:
        return NoAdapters()
    adapters = ImageAdapters(adapted, host, limits, dtype=dtype)
    adapters.load_first(places)
    return adapters
