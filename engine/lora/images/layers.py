"""A model's layers, to whose outputs adapters add what they change, each row its own.

A layer is watched (by a forward hook of torch) only while an adapter changes it, and computes what
it always does: whatever its weights are kept in, a row without an adapter has the bits that it has
without any, and nothing is left of an adapter that is gone.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.image_types import LoraUse
from engine.lora.images.changes import Change, Layer, Product, add_by_rows
from engine.lora.images.dora import Gated, GatedChange
from kernels import RowUpdates

Uses = tuple[LoraUse, ...]
"""Of a row: its adapters by their keys. Scale 0 is left out."""
Place = tuple[str, str]
"""A component, by its name in model_index.json, and a path in it."""

_ALIGNMENT = 64
"""Bytes."""
TEXT_ENCODER = "text_encoder"
"""What the names of components that read prompts begin with."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The rows that have an adapter.

    Attributes:
        rows: `[n]` int64.
        is_all: whether there are no others.
        scales: `[n]` fp32.
    """

    key: str
    rows: Tensor
    is_all: bool
    scales: Tensor

    def add(self, change: Change | GatedChange, x: Tensor, own: Tensor, y: Tensor) -> None:
        """
        Args:
            own: what the layer makes of x.
            y: the same, and what others have added.
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
        """Row by row: the sums of libraries depend on how many there are."""
        for place, row in enumerate(self.rows.tolist()):
            x_row, scale = _row(x, row), self.scales[place : place + 1]
            if isinstance(change, GatedChange):
                update = change.with_output(x_row, _row(own, row), scale)
            else:
                update = change(x_row, scale)
            y[row : row + 1].add_(update)


class _Watch:
    """One layer's hook."""

    def __init__(self, module: nn.Module, step: "_Step") -> None:
        self._changes: dict[str, Change | GatedChange] = {}
        self._known: _Sorted | None = None
        self._step = step
        self._handle: RemovableHandle = module.register_forward_hook(self._add)

    def put(self, key: str, change: Change | GatedChange) -> None:
        self._changes[key] = change
        self._known = None

    def drop(self, key: str) -> bool:
        """Whether no adapter changes the layer now."""
        self._changes.pop(key, None)
        self._known = None
        return not self._changes

    def close(self) -> None:
        self._handle.remove()

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, groups = inputs[0], self._step.groups
        acting = self._known
        # Steps repeat them.
        if acting is None or acting.groups is not groups or acting.dtype is not x.dtype:
            acting = self._known = self._sort(groups, x.dtype)
        if not acting.by_rows and not acting.others:
            return
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
    """What changes a layer in a step with these groups, whose inputs have that type.

    First what is added by rows: the order in which a row gets what it has must not depend on other
    rows' adapters.
    """

    groups: Sequence[_Group]
    dtype: torch.dtype
    by_rows: Sequence[RowUpdates]
    others: Sequence[tuple[_Group, Change | GatedChange]]
    needs_own: bool
    """Whether one of several looks at what the layer itself makes."""


class _Step:
    """Whose rows the model computes now."""

    def __init__(self) -> None:
        self.groups: Sequence[_Group] = ()
        self.num_rows = 0


class AdaptedLayers:
    """Loop thread only.

    Args:
        components: the model's parts by their names. A list holds fine-tunes of one another (the
            UNets of several tasks): adapters are for the first, and act in the others where their
            layers have the same sizes.
        aliases: of a component's paths, other names: each for one layer, or for several whose
            outputs lie one after the other in the original release.
        device: of the rows.
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
        """The layer, and that of each fine-tune in which it has the same sizes."""
        return self._modules[place]

    def put(self, key: str, changes: Mapping[Place, Change | Gated]) -> None:
        """Have rows with that adapter change."""
        for place, change in changes.items():
            for number, module in enumerate(self._modules[place]):
                if module not in self._watches:
                    self._watches[module] = _Watch(module, self._step)
                own = change.changes[number] if isinstance(change, Gated) else change
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
        """Those of a row that change what becomes of its prompts."""
        return tuple(use for use in uses if use.name in self._of_text)

    @contextmanager
    def rows(self, uses: Iterable[Uses]) -> Iterator[None]:
        """Within it the model computes rows that have these adapters."""
        each = tuple(uses)
        if self._known[0] != each:  # steps repeat them
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
    """Components by diffusers' names for the first text encoder, the second and so on."""
    return {
        f"{TEXT_ENCODER}{f'_{number}' if number > 1 else ''}": [model]
        for number, model in enumerate(models, 1)
        if model is not None
    }


def _row(x: Tensor, row: int) -> Tensor:
    """`[1, ...]`, as memory of its own would begin."""
    found = x[row : row + 1]
    return found.clone() if found.data_ptr() % _ALIGNMENT else found


def _grouped(each: Sequence[Uses], device: torch.device) -> list[_Group]:
    """By adapter, in an order that does not depend on which rows come together: a row's sum has one
    order then."""
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
