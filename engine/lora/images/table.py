"""The adapters that an image model has now."""

import os
from collections.abc import Mapping
from pathlib import Path

import structlog
import torch

from engine.adapter_orders import AdapterOrder, AdapterReport, NoAdapters
from engine.host import Grant, Host
from engine.lora.images.changes import Change
from engine.lora.images.files import Plan, plan_adapter, read_changes
from engine.lora.images.layers import AdaptedLayers, Place
from engine.lora.images.names import layer_names
from engine.lora.shelf import Shelf, Steps, cause_of

log = structlog.get_logger(__name__)


class ImageAdapterTable(Shelf[Grant]):
    """An adapter has weights of its own, whose memory is lent to it for as long as it is there.

    Args:
        dtype: of the model.
        max_adapters: as many names there may be at a time.
        capacity_bytes: see `Host.reserve`.
    """

    asked_by = "loras"

    def __init__(
        self,
        adapted: AdaptedLayers,
        host: Host,
        *,
        dtype: torch.dtype,
        max_adapters: int,
        capacity_bytes: int,
    ) -> None:
        super().__init__(max_adapters=max_adapters)
        self._adapted = adapted
        self._host = host
        self._dtype = dtype
        self._capacity_bytes = capacity_bytes
        self._names = layer_names(adapted)

    def load_first(self, places: Mapping[str, str]) -> None:
        """Load the adapters that the model begins with. One that cannot be loaded is left out, with
        the reason; the model and the others are as if it had not been asked for."""
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
            except Exception as error:  # whatever a stranger's file can do, the model is served
                reason = self.failed[name] = cause_of(error, name).message
                log.error("adapter failed to load", adapter=name, folder=place, reason=reason)

    def _steps(self, order: AdapterOrder) -> Steps:
        planning = self._thread.submit(self._plan, order.folder)
        yield planning
        plan = planning.result()
        grant = self._borrow(plan.num_weights * self._dtype.itemsize)
        try:
            reading = self._thread.submit(read_changes, plan, self._dtype, self._adapted.device)
            yield reading
            changes = reading.result()
        except Exception:
            self._host.give_back(grant)
            raise
        return self._enter(order.name, changes, grant, plan.report)

    def _plan(self, place: str) -> Plan:
        return plan_adapter(Path(os.path.expanduser(place)), self._names, self._adapted.layers)

    def _borrow(self, num_bytes: int) -> Grant:
        device = self._adapted.device.type
        return self._host.borrow(device, "adapters", num_bytes, self._capacity_bytes)

    def _enter(
        self, name: str, changes: Mapping[Place, Change], grant: Grant, report: AdapterReport
    ) -> AdapterReport:
        self._adapted.put(self._keep(name, grant, report), changes)
        return report

    def _forget(self, key: str, place: Grant) -> None:
        self._adapted.drop(key)
        self._host.give_back(place)


def load_image_adapters(
    places: Mapping[str, str],
    adapted: AdaptedLayers,
    host: Host,
    *,
    dtype: torch.dtype,
    max_adapters: int,
    capacity_bytes: int,
) -> "ImageAdapterTable | NoAdapters":
    """The adapters that a model begins with, by the names under which they will be served, and room
    for more."""
    if not max_adapters:
        return NoAdapters()
    table = ImageAdapterTable(
        adapted, host, dtype=dtype, max_adapters=max_adapters, capacity_bytes=capacity_bytes
    )
    table.load_first(places)
    return table
