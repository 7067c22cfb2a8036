"""From a decision to the arrays of one forward pass. NumPy throughout: a few array calls per step.

Rows are ordered for the kernels, not as the decision lists them: sequences with a single row come
first, the longest context first, then prompt chunks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.llm.decision import PENDING_TOKEN_ID, ScheduledSequence
from kernels import PagedBatch

Int64Array = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One step's T rows of B sequences."""

    sequences: list[ScheduledSequence]
    """In row order."""
    token_ids: Tensor
    """[T] int64; `PENDING_TOKEN_ID` in pending rows."""
    positions: Tensor
    """[T] int64."""
    paged: PagedBatch
    slot_mapping: tuple[Tensor, Tensor]
    """Block ids and slots, each [T] int64."""
    written_block_ids: Int64Array
    """[T] on the host: the block each row is stored in."""
    entered_block_ids: list[int]
    """Blocks whose first slot is written now and whose last one is not yet."""
    pending_rows: list[int]
    """Single rows, whose token the step before draws: row i is that of sequence i."""

    @property
    def first_rows(self) -> list[int]:
        """Per sequence the offset of its first row."""
        starts: list[int] = self.paged.host_cu_seqlens_q[:-1].tolist()
        return starts


def build_batch(
    scheduled: Sequence[ScheduledSequence], block_size: int, device: torch.device
) -> Batch:
    """Lay out a step. `scheduled` is not empty and each sequence has at least one token."""
    sequences = sorted(scheduled, key=_row_order)
    lengths = np.array([len(s.token_ids) for s in sequences], dtype=np.int64)
    starts = np.array([s.start for s in sequences], dtype=np.int64)
    context_lens = starts + lengths
    cu_seqlens_q = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens_q[1:])
    tables = _block_tables(sequences, -(-context_lens // block_size))

    sequence_of_row = np.repeat(np.arange(len(sequences)), lengths)
    positions = np.arange(cu_seqlens_q[-1]) + (starts - cu_seqlens_q[:-1])[sequence_of_row]
    block_ids = tables[sequence_of_row, positions // block_size].astype(np.int64)
    slots = positions % block_size
    token_ids = np.array([t for s in sequences for t in s.token_ids], dtype=np.int64)
    return Batch(
        sequences=sequences,
        token_ids=_on(device, token_ids),
        positions=_on(device, positions),
        paged=PagedBatch.from_host(
            tables,
            context_lens.astype(np.int32),
            cu_seqlens_q,
            int(np.count_nonzero(lengths == 1)),
            device,
        ),
        slot_mapping=(_on(device, block_ids), _on(device, slots)),
        written_block_ids=block_ids,
        entered_block_ids=_entered(tables, starts, context_lens, block_size),
        pending_rows=np.flatnonzero(token_ids == PENDING_TOKEN_ID).tolist(),
    )


def _row_order(sequence: ScheduledSequence) -> tuple[bool, int]:
    num_tokens = len(sequence.token_ids)
    return num_tokens > 1, -(sequence.start + num_tokens)


def _block_tables(
    sequences: Sequence[ScheduledSequence], num_blocks: Int64Array
) -> NDArray[np.int32]:
    """[B, M], unused entries repeating a sequence's first block."""
    tables = np.empty((len(sequences), int(num_blocks.max())), dtype=np.int32)
    for row, sequence, used in zip(tables, sequences, num_blocks.tolist(), strict=True):
        row[:used] = sequence.block_ids[:used]
        row[used:] = sequence.block_ids[0]
    return tables


def _entered(
    tables: NDArray[np.int32], starts: Int64Array, context_lens: Int64Array, block_size: int
) -> list[int]:
    last = context_lens // block_size
    partial = context_lens % block_size != 0
    entered = partial & (last * block_size >= starts)
    ids: list[int] = tables[entered, last[entered]].tolist()
    return ids


def _on(device: torch.device, array: Int64Array) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
