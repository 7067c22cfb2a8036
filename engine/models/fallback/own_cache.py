"""Runs a model of transformers with transformers' own cache, one token of one text at a time.

This serves attention that reads more than queries, keys and values: keys chosen by an index, biases
that depend on distances, masks that depend on numbers. Each step fills a cache from our blocks and
slots and stores there what the new tokens add, so a text has the same bits however it is cut and
whatever is beside it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental import _config
from transformers import DynamicCache

from engine.contract.kv_layout import KvShape
from engine.errors import ModelLoadError
from engine.models.fallback.states import LayerStates
from engine.models.fallback.step import at_row
from engine.models.forward_context import ForwardContext
from kernels.shared.recurrent_batch import NO_SLOT

_GROWING = ("keys", "values", "indexer_keys")
"""The attributes of transformers' cache to which each token adds, in the order in which we store
them."""


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """What a layer of transformers' cache holds.

    Attributes:
        tokens: the shape of what one token adds to each growing attribute.
        states: the states of the layer, if it has any.
        num_axes: the axes of the positions that it keeps; 0 for none.
    """

    tokens: Mapping[str, tuple[int, int]]
    states: LayerStates
    num_axes: int

    @property
    def shape(self) -> KvShape:
        """A place in our cache for the numbers of a token: half are stored as keys, half as
        values."""
        size = sum(map(prod, self.tokens.values()))
        return KvShape(1, 2 * -(-size // 4))


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """How transformers' cache is kept in ours.

    Attributes:
        layers: its layers.
        reason: why the model does not run on the paged cache as others do.
    """

    layers: tuple[CacheLayer, ...]
    reason: str

    @property
    def growing(self) -> list[CacheLayer]:
        """The layers with tokens, which have the first places in our cache."""
        return [one for one in self.layers if one.tokens]

    @property
    def stateful(self) -> list[CacheLayer]:
        """The layers with states, which have the last places."""
        return [one for one in self.layers if one.states.parts]


class _Cache(DynamicCache):  # type: ignore[misc]
    """transformers' cache, which also collects what tokens add: for each layer and attribute the
    tokens' numbers, [1, H, T, D] each."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.added: dict[tuple[int, str], list[Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> Any:
        self.added.setdefault((layer_idx, "keys"), []).append(key_states)
        self.added.setdefault((layer_idx, "values"), []).append(value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def update_indexer(self, indexer_key_states: Tensor, layer_idx: int) -> Any:
        self.added.setdefault((layer_idx, "indexer_keys"), []).append(indexer_key_states[:, None])
        return super().update_indexer(indexer_key_states, layer_idx)


def trace_cache(model: Any, reason: str) -> CacheLayout:
    """Find out what a model keeps in transformers' cache. It may fail in any way.

    Args:
        model: a model on the meta device. The dtype of its weights changes.
    """
    model.bfloat16()
    model.config._attn_implementation = "eager"
    cache = _Cache(model.config)
    some = _config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    with torch.device("meta"), torch.inference_mode(), some:
        zero = torch.zeros(1, 1, dtype=torch.int64)
        model.base_model(input_ids=zero, position_ids=zero, cache=cache, use_cache=True)
    layers = []
    for number, layer in enumerate(cache.layers):
        if type(layer).__module__ != DynamicCache.__module__:
            raise ValueError("this model has a cache of its own")
        tokens = {
            name: (added[0].shape[1], added[0].shape[3])
            for name in _GROWING
            if (added := cache.added.get((number, name)))
        }
        positions = getattr(layer, "indexer_position_ids", None)
        num_axes = 0 if positions is None else len(positions)
        layers.append(CacheLayer(tokens, LayerStates.of(layer), num_axes))
    if not any(one.tokens or one.states.parts for one in layers):
        raise ValueError("it keeps nothing")
    return CacheLayout(tuple(layers), reason)


@dataclass(frozen=True, slots=True)
class OneByOne:
    """Computes the rows of a step one after the other."""

    model: Any
    layout: CacheLayout
    dtype: torch.dtype

    def forward(self, token_ids: Tensor, positions: Tensor, ctx: ForwardContext) -> Tensor:
        """Compute [T, C] from [T] token ids and positions."""
        if any(one is not None for one in ctx.kv_scales):
            raise ModelLoadError(
                "transformers' own cache, which this model needs, cannot be kept in 8 bits; set "
                "kv_cache_dtype to auto",
                param="kv_cache_dtype",
            )
        states = []
        offsets = ctx.groups[0].batch.host_cu_seqlens_q.tolist()
        for text, (start, end) in enumerate(pairwise(offsets)):
            cache = self._load(text, int(positions[start]), ctx)
            for row in range(start, end):
                given = {
                    "input_ids": token_ids[None, row : row + 1],
                    "position_ids": positions[None, row : row + 1],
                }
                with at_row(row):
                    found = self.model.base_model(**given, cache=cache, use_cache=True)
                states.append(found.last_hidden_state[0])
            self._save(cache, text, slice(start, end), ctx)
        return torch.cat(states)

    def _load(self, text: int, length: int, ctx: ForwardContext) -> _Cache:
        """Return the cache of a text with that many computed tokens."""
        cache = _Cache(self.model.config)
        if not length:
            return cache
        for place, layer, kept in self._growing(cache):
            batch = ctx.groups[ctx.group_of_layer[place]].batch
            memory = ctx.kv_caches[place]
            blocks = batch.block_tables[text, : -(-length // memory.shape[3])]
            rows = memory[blocks.long()].movedim(3, 1).flatten(0, 1)[:length].flatten(1)
            start = 0
            for name, (heads, size) in kept.tokens.items():
                part = rows[:, start : start + heads * size].view(length, heads, size)
                start += heads * size
                part = part.transpose(0, 1)[None].contiguous()
                self._fill(layer, name, part)
            if kept.num_axes:
                rows = torch.arange(length, device=memory.device)
                layer.indexer_position_ids = rows.expand(kept.num_axes, 1, -1)
        if ctx.recurrent is not None:
            slot = int(ctx.recurrent.read_slots[text])
            for place, layer, kept in self._stateful(cache):
                assert slot != NO_SLOT
                kept.states.load(layer, ctx.recurrent_states[place][1][slot], self.dtype)
        return cache

    @staticmethod
    def _fill(layer: Any, name: str, tokens: Tensor) -> None:
        """Set what a layer of the cache has after some tokens, [1, H, T, D]."""
        if name == "indexer_keys":
            layer.lazy_initialization_indexer(tokens)
            layer.indexer_keys = tokens[:, 0]
            return
        if name == "keys":
            layer.lazy_initialization(tokens, tokens)
            if layer.is_sliding:
                layer.cumulative_length = tokens.shape[2]
        if layer.is_sliding:
            tokens = tokens[:, :, 1 - layer.sliding_window :]
        setattr(layer, name, tokens)

    def _save(self, cache: _Cache, text: int, rows: slice, ctx: ForwardContext) -> None:
        """Store what the rows of a text have added."""
        for place, layer, kept in self._growing(cache):
            memory, number = ctx.kv_caches[place], cache.layers.index(layer)
            blocks, slots = ctx.groups[ctx.group_of_layer[place]].slot_mapping
            parts = [
                torch.cat(cache.added[number, name], 2)[0].transpose(0, 1).flatten(1)
                for name in kept.tokens
            ]
            numbers = torch.cat(parts, 1).to(memory.dtype)
            numbers = F.pad(numbers, (0, 2 * memory.shape[4] - numbers.shape[1]))
            memory[blocks[rows], :, 0, slots[rows]] = numbers.view(len(numbers), 2, -1)
        if ctx.recurrent is not None:
            slot = int(ctx.recurrent.write_slots[text])
            for place, layer, kept in self._stateful(cache):
                kept.states.save(layer, ctx.recurrent_states[place][1][slot])

    def _growing(self, cache: _Cache) -> Iterator[tuple[int, Any, CacheLayer]]:
        pairs = zip(cache.layers, self.layout.layers, strict=True)
        kept = [pair for pair in pairs if pair[1].tokens]
        return ((place, *pair) for place, pair in enumerate(kept))

    def _stateful(self, cache: _Cache) -> Iterator[tuple[int, Any, CacheLayer]]:
        pairs = zip(cache.layers, self.layout.layers, strict=True)
        kept = [pair for pair in pairs if pair[1].states.parts]
        return ((len(self.layout.growing) + i, *pair) for i, pair in enumerate(kept))
