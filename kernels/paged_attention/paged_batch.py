"""A step's rows and their block tables in the form that attention needs, built once for all
layers."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kernels.shared.transfer import to_device

Int32Array = NDArray[np.int32]
WIDEST_IN_TRITON = 256
"""The largest head that attention in Triton takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedBatch:
    """B sequences of packed rows.

    Each fact is stored twice: as a tensor on the device for kernels, and as an array on the host
    for planning without waiting for the device. On a CPU both share their memory.

    Invariants: the first `num_decodes` sequences have one row each, and long contexts come first;
    `context_lens[b] >= cu_seqlens_q[b + 1] - cu_seqlens_q[b] >= 1`; unused entries of a block table
    repeat its first block, so that reading them is harmless.

    In a recorded step (a CUDA graph) the host's context lengths are upper bounds that size the
    launches; the tensors alone must decide what a row reads. All sequences are decodes then, and
    there are no `key_ends`.
    """

    block_tables: Tensor
    """[B, M] int32."""
    context_lens: Tensor
    """[B] int32, cached tokens including this step's."""
    cu_seqlens_q: Tensor
    """[B + 1] int32, row offsets; sequence b owns rows cu_seqlens_q[b] .. cu_seqlens_q[b + 1]."""
    num_decodes: int
    host_block_tables: Int32Array
    host_context_lens: Int32Array
    host_cu_seqlens_q: Int32Array
    key_ends: Tensor | None = None
    """[T] int32: each row sees the keys before this position of its text, which is after its own
    and not beyond the context's end; it does not decrease from row to row of a sequence. None: each
    row sees the keys up to its own."""
    plans: dict[Any, Any] = field(default_factory=dict)
    """Results that an implementation computed for the first layer and reuses in the others."""

    @property
    def longest_context(self) -> int:
        """The longest context of all sequences; new rows are at positions below it."""
        return int(self.host_context_lens.max(initial=0))

    @classmethod
    def from_host(
        cls,
        block_tables: Int32Array,
        context_lens: Int32Array,
        cu_seqlens_q: Int32Array,
        num_decodes: int,
        device: torch.device,
        key_ends: Int32Array | None = None,
    ) -> "PagedBatch":
        """Make the tensors; the arrays must not change afterwards."""
        tables = block_tables[np.newaxis]
        return cls.of_groups(tables, context_lens, cu_seqlens_q, num_decodes, device, key_ends)[0]

    @classmethod
    def of_groups(
        cls,
        block_tables: Int32Array,
        context_lens: Int32Array,
        cu_seqlens_q: Int32Array,
        num_decodes: int,
        device: torch.device,
        key_ends: Int32Array | None = None,
    ) -> list["PagedBatch"]:
        """Make batches of the same rows for several groups of layers, whose block tables are [G, B,
        M]."""
        arrays = [*block_tables, context_lens, cu_seqlens_q]
        *tables, lens, offsets = to_device(arrays, device)
        ends = None if key_ends is None else to_device([key_ends], device)[0]
        return [
            cls(
                block_tables=table,
                context_lens=lens,
                cu_seqlens_q=offsets,
                num_decodes=num_decodes,
                host_block_tables=host_table,
                host_context_lens=context_lens,
                host_cu_seqlens_q=cu_seqlens_q,
                key_ends=ends,
            )
            for table, host_table in zip(tables, block_tables, strict=True)
        ]
