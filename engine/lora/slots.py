"""All adapters of a model side by side, and what they add to the rows of a step.

Per linear layer there is one array of every adapter's A and one of its B, padded with zeros to the
highest rank: a launch serves rows with different adapters (`kernels.lora_gather`). Adapters without
that layer have zeros there. A row's bits depend on its own adapter alone.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import structlog
import torch
from torch import Tensor

from engine.errors import InsufficientMemory, ModelLoadError, UnknownAdapter
from engine.host import Host
from engine.lora.peft_files import Adapter, Update, read_adapter
from engine.models.causal_lm import CausalLM
from engine.models.layers.linear import Linear
from engine.models.layers.weight_slots import WeightOptions
from engine.runtime.huge_pages import use_huge_pages
from kernels import lora_gather

log = structlog.get_logger(__name__)


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

    def put(self, slot: int, update: Update) -> None:
        """Set what the adapter in a slot has."""
        self.a[slot, : update.rank] = update.a
        self.b[slot, : update.rank] = update.b.T
        self.scales[slot] = update.scale


@dataclass(frozen=True, slots=True)
class LoraRows:
    """A step's rows: `engine.models.forward_context.RowAdapters`."""

    updates: Mapping[str, Sequence[ShardUpdates]]
    slots: Tensor

    def add(self, path: str, x: Tensor, y: Tensor) -> None:
        for shard in self.updates.get(path, ()):
            part = y.narrow(1, shard.first, shard.b.shape[2])
            lora_gather(part, x, shard.a, shard.b, self.slots, shard.scales)


class LoraSlots:
    """`engine.models.adapters.Adapters`: never changed once it is filled.

    Args:
        adapters: by name; the first one is in slot 0.
    """

    def __init__(self, model: CausalLM, adapters: Mapping[str, Adapter]) -> None:
        self._slots = {name: slot for slot, name in enumerate(adapters)}
        self._updates = {
            layer.path: _layer_updates(layer, list(adapters.values()), model.options)
            for layer in _linear_layers(model)
        }

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._slots)

    def slot_of(self, name: str) -> int:
        if name not in self._slots:
            raise UnknownAdapter(f"the model has no adapter {name!r}", param="model")
        return self._slots[name]

    def of_rows(self, slots: Tensor) -> LoraRows:
        return LoraRows(self._updates, slots)


@dataclass(slots=True)
class LoadedAdapters:
    """What became of the adapters that a model was to have."""

    slots: LoraSlots | None = None
    """None: it has none."""
    num_bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by name, in words that hold no path."""

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.slots is None else self.slots.names


def load_adapters(
    folders: Mapping[str, str], model: CausalLM, host: Host, capacity_bytes: int
) -> LoadedAdapters:
    """Load adapters from folders, by the names under which they will be served.

    One that cannot be loaded is left out, with the reason; the model and the others are as if it
    had not been asked for.

    Args:
        capacity_bytes: see `Host.reserve`.
    """
    loaded = LoadedAdapters()
    shapes = {
        path: (shard.out_features, layer.in_features)
        for layer in _linear_layers(model)
        for path, shard in zip(layer.shard_paths, layer.shards, strict=True)
    }
    options = model.options
    adapters: dict[str, Adapter] = {}
    for name, folder in folders.items():
        try:
            place = Path(os.path.expanduser(folder))
            adapters[name] = read_adapter(place, shapes, options.dtype)
        except ModelLoadError as error:
            loaded.failed[name] = error.message
        except Exception as error:  # whatever a stranger's file can do, the model is served
            log.exception("adapter failed to load", adapter=name)
            loaded.failed[name] = f"{type(error).__name__} while its files were read"
    if adapters:
        loaded.num_bytes = _num_bytes(adapters, shapes, options.dtype.itemsize)
        try:
            host.reserve(options.device.type, "adapters", loaded.num_bytes, capacity_bytes)
            loaded.slots = LoraSlots(model, adapters)
            if options.device.type == "cpu":
                use_huge_pages()
        except InsufficientMemory as error:
            loaded.num_bytes = 0
            loaded.failed |= dict.fromkeys(adapters, error.message)
    for name, reason in loaded.failed.items():
        log.error("adapter failed to load", adapter=name, folder=folders[name], reason=reason)
    for name in loaded.names:
        ranks = sorted({update.rank for update in adapters[name].values()})
        log.info("adapter loaded", adapter=name, layers=len(adapters[name]), ranks=ranks)
    return loaded


def _linear_layers(model: CausalLM) -> list[Linear]:
    return [module for module in model.modules() if isinstance(module, Linear)]


def _layer_updates(
    layer: Linear, adapters: Sequence[Adapter], options: WeightOptions
) -> list[ShardUpdates]:
    found, first = [], 0
    for path, shard in zip(layer.shard_paths, layer.shards, strict=True):
        if rank := _rank(path, adapters):
            updates = ShardUpdates.empty(
                first,
                num_adapters=len(adapters),
                rank=rank,
                inputs=layer.in_features,
                outputs=shard.out_features,
                options=options,
            )
            for slot, adapter in enumerate(adapters):
                if path in adapter:
                    updates.put(slot, adapter[path])
            found.append(updates)
        first += shard.out_features
    return found


def _rank(path: str, adapters: Sequence[Adapter]) -> int:
    """The highest that an adapter has for a layer; 0: none has any."""
    return max((adapter[path].rank for adapter in adapters if path in adapter), default=0)


def _num_bytes(
    adapters: Mapping[str, Adapter], shapes: Mapping[str, tuple[int, int]], itemsize: int
) -> int:
    stored = list(adapters.values())
    per_adapter = sum(_rank(path, stored) * sum(shape) for path, shape in shapes.items())
    return len(stored) * per_adapter * itemsize
