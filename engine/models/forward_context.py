"""What a forward pass must know beside its tokens. Passed as an argument, never kept."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kernels import PagedBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardContext:
    """One step's rows in the cache's terms. T rows: single decoded tokens first, then chunks."""

    batch: PagedBatch
    """Block tables, context lengths and row offsets of the sequences."""
    slot_mapping: tuple[Tensor, Tensor]
    """Where each row's key and value go: block ids and slots, each [T] int64."""
    kv_caches: Sequence[Tensor]
    """Per layer [N, 2, K, S, D]."""
    adapter_ids: Tensor | None = None
    """[T] int32: LoRA adapter of each row, -1 for none; None when no row has one."""
