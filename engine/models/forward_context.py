"""What a forward pass must know beside its tokens. Passed as an argument, never kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from kernels import PagedBatch


class GroupContext(NamedTuple):
    """The step's rows in the block tables of one layer group."""

    batch: PagedBatch
    """Block tables, context lengths and row offsets of the sequences."""
    slot_mapping: tuple[Tensor, Tensor]
    """Where each row's key and value go: block ids and slots, each [T] int64."""


class RowAdapters(Protocol):
    """The adapters that some of the step's rows have beside the model's weights."""

    def add(self, path: str, x: Tensor, y: Tensor) -> None:
        """Add what each row's adapter makes of its input in the linear layer at `path`.

        Args:
            x: [T, in].
            y: [T, out], what the layer itself makes of it. Mutated; rows without an adapter, or
                whose adapter has nothing for this layer, keep their bits.
        """
        ...

    def add_looked_up(self, path: str, token_ids: Tensor, y: Tensor) -> None:
        """The same for the embedding at `path`.

        Args:
            token_ids: [T] int64.
            y: [T, C], its rows. Mutated.
        """
        ...

    def take_copies(self, path: str, y: Tensor, compute: Callable[[Any], Tensor]) -> None:
        """Where a row's adapter brings a copy of the whole module at `path`, take what that gives.

        Args:
            y: [T, C], what the module itself gives. Mutated.
            compute: given what the module has made of a copy, [T, C] for all rows.
        """
        ...

    def add_to_logits(
        self, path: str, hidden: Tensor, logits: Tensor, compute: Callable[[Any, Tensor], Tensor]
    ) -> None:
        """Both for the output layer at `path`. Reads which adapters there are: never recorded.

        Args:
            hidden: [R, C].
            logits: [R, V] fp32. Mutated.
            compute: given what the layer has made of a copy and some of the rows, their logits.
        """
        ...

    def at(self, rows: Tensor) -> "RowAdapters":
        """Those of some rows, which may come more than once.

        Args:
            rows: [R] int64.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardContext:
    """One step's rows in the cache's terms. T rows: single decoded tokens first, then chunks."""

    groups: Sequence["GroupContext"]
    """Per group of layers that share blocks."""
    group_of_layer: Sequence[int]
    kv_caches: Sequence[Tensor]
    """Per layer [N, 2, K, S, D]."""
    kv_scales: Sequence[Tensor | None] = ()
    """Per layer [N, 2, K, S] of packed caches, None of others; empty: none is packed."""
    adapters: RowAdapters | None = None
    """None when no row has one."""

    @property
    def longest_context(self) -> int:
        """Of all sequences; new rows are at positions below it."""
        return self.groups[0].batch.longest_context


NO_CONTEXT = ForwardContext(groups=(), group_of_layer=(), kv_caches=())
"""For models that keep nothing between steps, and layers that are called alone."""
