"""The context of a forward pass beside its tokens. Passed as an argument, never kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from kernels import PagedBatch
from kernels.shared.recurrent_batch import RecurrentBatch


class GroupContext(NamedTuple):
    """The step's rows in the block tables of one layer group."""

    batch: PagedBatch
    """Block tables, context lengths and row offsets of the sequences."""
    slot_mapping: tuple[Tensor, Tensor]
    """The places of the rows' keys and values: block ids and slots, each [T] int64."""


class RowAdapters(Protocol):
    """The adapters that some of the step's rows have beside the model's weights."""

    def add(self, path: str, x: Tensor, y: Tensor) -> None:
        """Add the changes of the rows' adapters to a linear layer's output.

        Args:
            path: the layer's path.
            x: [T, in], the layer's input.
            y: [T, out], the layer's output. Mutated; rows without an adapter, or whose adapter does
                not change this layer, keep their bits.
        """
        ...

    def add_looked_up(self, path: str, token_ids: Tensor, y: Tensor) -> None:
        """Add the changes of the rows' adapters to an embedding's output.

        Args:
            path: the embedding's path.
            token_ids: [T] int64.
            y: [T, C], the looked-up rows. Mutated.
        """
        ...

    def take_copies(self, path: str, y: Tensor, compute: Callable[[Any], Tensor]) -> None:
        """Replace the output of rows whose adapter brings a copy of the whole module at `path`.

        Args:
            y: [T, C], the module's own output. Mutated.
            compute: computes [T, C] for all rows from the module's form of a copy.
        """
        ...

    def add_to_logits(
        self, path: str, hidden: Tensor, logits: Tensor, compute: Callable[[Any, Tensor], Tensor]
    ) -> None:
        """Add the changes of the rows' adapters to the logits of the output layer at `path`. It
        reads which adapters there are, so it is never recorded.

        Args:
            hidden: [R, C].
            logits: [R, V] fp32. Mutated.
            compute: computes logits from the layer's form of a copy and some of the rows.
        """
        ...

    def at(self, rows: Tensor) -> "RowAdapters":
        """Return the adapters of some rows, which may be repeated.

        Args:
            rows: [R] int64.
        """
        ...


class RowStates(NamedTuple):
    """Rows whose inputs are states of an encoder instead of looked-up embeddings."""

    rows: Tensor
    """[R] int64."""
    states: Tensor
    """[R, N · C], in the model's dtype: the inputs, then what is added to the outputs of the first
    N - 1 layers."""

    def replace_in(self, embedded: Tensor) -> None:
        """Put the inputs in the rows of [T, C], which is mutated."""
        embedded.index_copy_(0, self.rows, self.states[:, : embedded.shape[1]])

    def add_after(self, layer: int, x: Tensor) -> None:
        """Add what belongs there to the output of a layer, [T, C], which is mutated."""
        size = x.shape[1]
        start = (layer + 1) * size
        if start < self.states.shape[1]:
            x.index_add_(0, self.rows, self.states[:, start : start + size])


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardContext:
    """A step's rows and their place in the cache. Rows of single decoded tokens come first, then
    chunks."""

    groups: Sequence["GroupContext"]
    """The context of each group of layers that share blocks."""
    group_of_layer: Sequence[int]
    kv_caches: Sequence[Tensor]
    """The cache [N, C, K, S, D] of each layer that attends; C is `KvShape.parts`."""
    kv_scales: Sequence[Tensor | None] = ()
    """The scales [N, C, K, S] of each layer with a packed cache, None for others; empty if no cache
    is packed."""
    recurrent: RecurrentBatch | None = None
    """The rows and slots of recurrent states; None if no layer has one."""
    recurrent_states: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """For each layer with a recurrent state, its last inputs and its state, [S, …] each."""
    embedded: Tensor | None = None
    """The embedded rows, [T, C], for layers that read them again; None for other models."""
    adapters: RowAdapters | None = None
    """The rows' adapters, or None when no row has one."""
    states: RowStates | None = None
    """The rows that are states, or None when no row is."""
    layer_inputs: Tensor | None = None
    """The inputs of single layers beside hidden states, [T, L, P]; None if there are none."""

    @property
    def longest_context(self) -> int:
        """The longest context of all sequences; new rows are at positions below it."""
        return self.groups[0].batch.longest_context


NO_CONTEXT = ForwardContext(groups=(), group_of_layer=(), kv_caches=())
"""The context for models that keep nothing between steps, and for layers called on their own."""
