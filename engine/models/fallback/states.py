"""Keeps the states of transformers' layers beside the paged cache.

transformers gives such a layer an object that holds its states, and computes one token differently
from several. Here every token of every text is computed alone, so a text has the same bits however
it is cut and whatever is beside it.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionCacheLayerMixin, LinearAttentionLayer

from engine.models.fallback.step import at_row, current_context
from kernels.shared.recurrent_batch import NO_SLOT


class StateKey(NamedTuple):
    """A state of a layer, as transformers names it."""

    kind: str
    """`conv_states` or `recurrent_states`."""
    number: int


@dataclass(frozen=True, slots=True)
class StatePart:
    """The place of a state among the numbers that a layer keeps of a text."""

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    """None for that of the model's weights."""

    def of(self, numbers: Tensor) -> Tensor:
        """View the state in a slot, which is a vector."""
        return numbers[self.start : self.start + prod(self.shape)].view(self.shape)


@dataclass(frozen=True, slots=True)
class LayerStates:
    """The states of a layer of transformers' cache, or some of them."""

    parts: Mapping[StateKey, StatePart]

    @classmethod
    def of(cls, layer: Any) -> Self:
        """All states that a layer of a cache has. Its model's weights are in bf16, which tells
        states in their dtype from those in fp32."""
        parts: dict[StateKey, StatePart] = {}
        start = 0
        for kind in _KINDS:
            for number, state in getattr(layer, kind, {}).items():
                if state is not None:
                    dtype = None if state.dtype == torch.bfloat16 else state.dtype
                    parts[StateKey(kind, number)] = StatePart(start, tuple(state.shape), dtype)
                    start += state.numel()
        return cls(parts)

    @property
    def size(self) -> int:
        """The end of the last state in a slot."""
        return max((one.start + prod(one.shape) for one in self.parts.values()), default=0)

    def load(self, layer: Any, numbers: Tensor, dtype: torch.dtype) -> None:
        """Fill a layer of a cache from a slot.

        Args:
            dtype: that of the model's weights.
        """
        for (kind, number), part in self.parts.items():
            # A copy, since modules change it and other texts may read the slot.
            state = part.of(numbers).to(part.dtype or dtype, copy=True)
            getattr(layer, kind)[number] = state
            getattr(layer, f"is_{kind}_initialized")[number] = True
            layer.has_previous_state[number] = True
            if kind == "conv_states":
                layer.conv_kernel_size[number] = state.shape[-1]

    def save(self, layer: Any, numbers: Tensor) -> None:
        """Store the states of a layer in a slot."""
        for (kind, number), part in self.parts.items():
            part.of(numbers).copy_(getattr(layer, kind)[number])


@dataclass(frozen=True, slots=True)
class StateModule:
    """A module that reads and writes states.

    Attributes:
        layer: the number that transformers gives the layer.
        place: the number that the cache has for it.
    """

    layer: int
    place: int
    states: LayerStates


_KINDS = ("conv_states", "recurrent_states")


class States(DynamicCache):  # type: ignore[misc]
    """The states of one text while a module computes it; keys and values are kept elsewhere."""

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the new keys and values, which our attention stores."""
        return key_states, value_states

    def get_linear_cache(self, layer_idx: int) -> Tensor | None:
        """MiniMax's name for `get_recurrent_state`."""
        found: Tensor | None = self.get_recurrent_state(layer_idx)
        return found

    def set_linear_cache(self, layer_idx: int, state: Tensor) -> None:
        """MiniMax's name for `update_recurrent_state`."""
        self.update_recurrent_state(state, layer_idx)
        self.layers[layer_idx].has_previous_state[0] = True


class TracedStates(States):
    """Notes which modules have which states.

    Attributes:
        found: for each path of a module, its layer and its states.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.found: dict[str, tuple[int, list[StateKey]]] = {}
        self._running: list[str] = []

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know which module runs. The model's weights become bf16, as `LayerStates.of` needs."""
        model.bfloat16()

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: self._running.append(path)

        def leave(*_: Any) -> None:
            self._running.pop()

        hooks = []
        for path, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(enter(path)))
            hooks.append(module.register_forward_hook(leave))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def update_conv_state(
        self, conv_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        self._note(layer_idx, StateKey("conv_states", state_idx))
        found: Tensor = super().update_conv_state(conv_states, layer_idx, state_idx, **kwargs)
        return found

    def update_recurrent_state(
        self, recurrent_states: Tensor, layer_idx: int, state_idx: int = 0, **kwargs: Any
    ) -> Tensor:
        self._note(layer_idx, StateKey("recurrent_states", state_idx))
        found: Tensor = super().update_recurrent_state(
            recurrent_states, layer_idx, state_idx, **kwargs
        )
        return found

    def modules(self, first_place: int) -> dict[str, StateModule]:
        """All modules with states, whose layers get places from a number on."""
        layers = sorted({layer for layer, _ in self.found.values()})
        places = {layer: first_place + i for i, layer in enumerate(layers)}
        modules = {}
        for path, (layer, keys) in self.found.items():
            states = LayerStates.of(self.layers[layer]).parts
            own = LayerStates({key: states[key] for key in keys})
            modules[path] = StateModule(layer, places[layer], own)
        return modules

    def _note(self, layer: int, key: StateKey) -> None:
        keys = self.found.setdefault(self._running[-1], (layer, []))[1]
        if key not in keys:
            keys.append(key)


def has_states(config: Any) -> bool:
    """Whether transformers keeps states for layers of a model."""
    try:
        layers = DynamicCache(config=config).layers
    except Exception:  # transformers may know no cache for it
        return False
    return any(isinstance(one, LinearAttentionCacheLayerMixin) for one in layers)


def keep_states(model: Any, modules: Mapping[str, StateModule], dtype: torch.dtype) -> States:
    """Let the modules read and write the slots of a step's texts, and return what to pass to the
    model for `cache`."""
    states = States(config=model.config)
    for path, kept in modules.items():
        module = model.get_submodule(path)
        module.forward = _InTurn(module.forward, kept, states, dtype)
    return states


class _InTurn:
    """A module's code, called for one token at a time."""

    def __init__(
        self, forward: Callable[..., Any], kept: StateModule, states: States, dtype: torch.dtype
    ) -> None:
        self._forward, self._kept, self._states, self._dtype = forward, kept, states, dtype
        self._names = list(inspect.signature(forward).parameters)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        ctx = current_context()
        given = dict(zip(self._names, args, strict=False)) | kwargs
        if ctx.recurrent is None or given.get("cache") is not self._states:
            return self._forward(**given)
        memory = ctx.recurrent_states[self._kept.place][1]
        num_rows = int(ctx.recurrent.cu_seqlens_q[-1])
        layers, number = self._states.layers, self._kept.layer
        outputs = []
        for start, end, read, write in ctx.recurrent.on_host():
            layer = LinearAttentionLayer(layers[number].number_of_states)
            layers[number] = layer
            if read != NO_SLOT:
                self._kept.states.load(layer, memory[read], self._dtype)
            for row in range(start, end):
                with at_row(row):
                    outputs.append(self._forward(**_cut(given, row, num_rows)))
            self._kept.states.save(layer, memory[write])
        return _joined(outputs)


def _cut(value: Any, row: int, num_rows: int) -> Any:
    """The part of a module's arguments that belongs to a row."""
    if isinstance(value, dict):
        return {name: _cut(one, row, num_rows) for name, one in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cut(one, row, num_rows) for one in value)
    if isinstance(value, Tensor) and value.ndim > 1 and value.shape[:2] == (1, num_rows):
        return value[:, row : row + 1]
    return value


def _joined(outputs: list[Any]) -> Any:
    first = outputs[0]
    if isinstance(first, tuple):
        return tuple(map(_joined, map(list, zip(*outputs, strict=True))))
    return torch.cat(outputs, 1) if isinstance(first, Tensor) else first
