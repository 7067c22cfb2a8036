"""A model's layers, to whose outputs adapters add their changes, row by row.

A layer has a forward hook of torch only while an adapter changes it, and the layer itself always
computes the same: whatever its weights are stored in, a row without an adapter has the bits that it
has in a model without adapters, and an unloaded adapter leaves nothing behind.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.contract.draw import LoraUse
from engine.lora.images.changes import Change, Layer, Product, add_by_rows
from engine.lora.images.gated_change import Gated, GatedChange
from kernels import RowUpdates

Uses = tuple[LoraUse, ...]
"""The adapters of a row, by key. Those with scale 0 are left out."""
Place = tuple[str, str]
"""A component, by its name in model_index.json, and a path in the component."""

_ALIGNMENT = 64
"""Alignment in bytes."""
TEXT_ENCODER = "text_encoder"
"""The prefix of the names of components that read prompts."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows of a step that have one adapter.

    Attributes:
        rows: `[n]` int64.
        is_all: whether the step has no other rows.
        scales: `[n]` fp32.
    """

    key: str
    rows: Tensor
    is_all: bool
    scales: Tensor

    def add(self, change: Change | GatedChange, x: Tensor, own: Tensor, y: Tensor) -> None:
        """Add a change to the rows of y.

        Args:
            own: the layer's output for x.
            y: that output with the additions of other adapters.
        """
        if x.is_cpu and x.dtype is torch.float32:
            self._add_each(change, x, own, y)
            return
        if not self.is_all:
            x = x.index_select(0, self.rows)
        if isinstance(change, GatedChange):
            rows = own if self.is_all else own.index_select(0, self.rows)
            update = change.with_output(x, rows, self.scales)
        else:
            update = change(x, self.scales)
        if self.is_all:
            y.add_(update)
        else:
            y.index_add_(0, self.rows, update)

    def _add_each(self, change: Change | GatedChange, x: Tensor, own: Tensor, y: Tensor) -> None:
        """Add the change row by row, because libraries' sums depend on the number of rows."""
        for place, row in enumerate(self.rows.tolist()):
            x_row, scale = _row(x, row), self.scales[place : place + 1]
            if isinstance(change, GatedChange):
                update = change.with_output(x_row, _row(own, row), scale)
            else:
                update = change(x_row, scale)
            y[row : row + 1].add_(update)


class _Watch:
    """The hook of one layer."""

    def __init__(self, module: nn.Module, step: "_Step") -> None:
        self._changes: dict[str, Change | GatedChange] = {}
        self._known: _Sorted | None = None
        self._step = step
        self._handle: RemovableHandle = module.register_forward_hook(self._add)

    def put(self, key: str, change: Change | GatedChange) -> None:
        self._changes[key] = change
        self._known = None

    def drop(self, key: str) -> bool:
        """Forget the changes of an adapter; return whether none are left."""
        self._changes.pop(key, None)
        self._known = None
        return not self._changes

    def close(self) -> None:
        self._handle.remove()

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, groups = inputs[0], self._step.groups
        acting = self._known
        # The same groups come in many steps.
        if acting is None or acting.groups is not groups or acting.dtype is not x.dtype:
            acting = self._known = self._sort(groups, x.dtype)
        if not acting.by_rows and not acting.others:
            return
        if output.ndim == 2 and len(output) != self._step.num_rows:
            # Z-Image has the tokens of all rows in one list, and Qwen-Image-Edit two times of one.
            x, output = (torch.unflatten(one, 0, (self._step.num_rows, -1)) for one in (x, output))
        assert len(output) == self._step.num_rows, "a layer's first axis is its rows"
        own = output.clone() if acting.needs_own else output
        if acting.by_rows:
            add_by_rows(acting.by_rows, x, output, is_map=isinstance(module, nn.Conv2d))
        for group, change in acting.others:
            group.add(change, x, own, output)

    def _sort(self, groups: Sequence[_Group], dtype: torch.dtype) -> "_Sorted":
        by_rows: list[RowUpdates] = []
        others: list[tuple[_Group, Change | GatedChange]] = []
        for group in groups:
            change = self._changes.get(group.key)
            if isinstance(change, Product) and change.is_turned and dtype is torch.float32:
                a, b = change.weights
                by_rows.append(RowUpdates(a, b, group.rows, group.scales))
            elif change is not None:
                others.append((group, change))
        is_gated = any(isinstance(change, GatedChange) for _, change in others)
        needs_own = is_gated and len(by_rows) + len(others) > 1
        return _Sorted(groups, dtype, by_rows, others, needs_own)


@dataclass(frozen=True, slots=True)
class _Sorted:
    """The changes of a layer in a step with these groups, for inputs of one dtype.

    Additions by rows come first: the order in which a row gets its additions must not depend on the
    adapters of other rows.
    """

    groups: Sequence[_Group]
    dtype: torch.dtype
    by_rows: Sequence[RowUpdates]
    others: Sequence[tuple[_Group, Change | GatedChange]]
    needs_own: bool
    """Whether one of several changes needs the layer's own output."""


class _Step:
    """The rows that the model computes now."""

    def __init__(self) -> None:
        self.groups: Sequence[_Group] = ()
        self.num_rows = 0


class AdaptedLayers:
    """The layers of a model that adapters can change. Loop thread only.

    Args:
        components: the model's parts by name. A list holds fine-tunes of one another (the UNets of
            several tasks): adapters are for the first, and change the others where their layers
            have the same sizes.
        aliases: other names of a component's paths, each for one layer, or for several whose
            outputs lie one after the other in the original release.
        device: the device of the rows.
    """

    def __init__(
        self,
        components: Mapping[str, Sequence[nn.Module]],
        *,
        device: torch.device,
        aliases: Mapping[str, Mapping[str, tuple[str, ...]]] | None = None,
    ) -> None:
        self.device = device
        self.aliases = dict(aliases or {})
        self.layers: dict[Place, Layer] = {}
        self._modules: dict[Place, list[nn.Module]] = {}
        for component, models in components.items():
            for model in models:
                self._enter(component, model, is_first=model is models[0])
        self._watches: dict[nn.Module, _Watch] = {}
        self._of_text: set[str] = set()
        self._step = _Step()
        self._known: tuple[tuple[Uses, ...], Sequence[_Group]] = ((), ())

    def modules(self, place: Place) -> Sequence[nn.Module]:
        """The layer's module, and that of each fine-tune in which it has the same sizes."""
        return self._modules[place]

    def put(self, key: str, changes: Mapping[Place, Change | Gated]) -> None:
        """Add the changes of an adapter."""
        for place, change in changes.items():
            for number, module in enumerate(self._modules[place]):
                if module not in self._watches:
                    self._watches[module] = _Watch(module, self._step)
                own = change[number] if isinstance(change, tuple) else change
                self._watches[module].put(key, own)
        if any(component.startswith(TEXT_ENCODER) for component, _ in changes):
            self._of_text.add(key)

    def drop(self, key: str) -> None:
        """Forget an adapter that no row has any more."""
        self._of_text.discard(key)
        self._known = ((), ())
        for module, watch in list(self._watches.items()):
            if watch.drop(key):
                watch.close()
                del self._watches[module]

    def of_prompts(self, uses: Uses) -> Uses:
        """Return those of a row's adapters that change text encoders."""
        return tuple(use for use in uses if use.name in self._of_text)

    @contextmanager
    def rows(self, uses: Iterable[Uses]) -> Iterator[None]:
        """Set the adapters of the rows that the model computes within this context."""
        each = tuple(uses)
        if self._known[0] != each:  # the same rows come in many steps
            self._known = each, _grouped(each, self.device)
        self._step.groups, self._step.num_rows = self._known[1], len(each)
        try:
            yield
        finally:
            self._step.groups = ()

    def _enter(self, component: str, model: nn.Module, *, is_first: bool) -> None:
        for path, module in model.named_modules():
            layer, place = Layer.of(module), (component, path)
            if layer is None:
                continue
            if is_first:
                self.layers[place] = layer
                self._modules[place] = [module]
            elif self.layers.get(place) == layer:
                self._modules[place].append(module)


def text_encoders(models: Iterable[nn.Module | None]) -> dict[str, list[nn.Module]]:
    """Return components under diffusers' names for the first text encoder, the second and so on."""
    return {
        f"{TEXT_ENCODER}{f'_{number}' if number > 1 else ''}": [model]
        for number, model in enumerate(models, 1)
        if model is not None
    }


def _row(x: Tensor, row: int) -> Tensor:
    """Copy one row, `[1, ...]`, to aligned memory of its own."""
    found = x[row : row + 1]
    return found.clone() if found.data_ptr() % _ALIGNMENT else found


def _grouped(each: Sequence[Uses], device: torch.device) -> list[_Group]:
    """Group rows by adapter in an order that is independent of which rows share the step, so that
    the order of a row's sum is fixed."""
    members: dict[str, dict[int, float]] = {}
    for row, uses in enumerate(each):
        for use in uses:
            scales = members.setdefault(use.name, {})
            scales[row] = scales.get(row, 0.0) + use.scale
    return [
        _Group(
            key,
            torch.tensor(list(scales), device=device),
            len(scales) == len(each),
            torch.tensor(list(scales.values()), dtype=torch.float32, device=device),
        )
        for key, scales in sorted(members.items())
    ]
