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
from engine.models.forward_context import GroupContext
from kernels import PagedBatch
from kernels.shared.transfer import to_device

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

TOKEN_IDS, POSITIONS, SLOTS, BLOCK_IDS = range(4)
"""What `StepRows.inputs` holds of each row, in this order: from `BLOCK_IDS` on there is one per
layer group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """One step's T rows of B sequences, on the host."""

    sequences: list[ScheduledSequence]
    """In row order."""
    num_decodes: int
    """Sequences with a single row: the first ones, the longest context first."""
    inputs: Int64Array
    """[3 + G, T]: token id (`PENDING_TOKEN_ID` in pending rows), position in the text, slot that
    key and value go to, and its block in each layer group."""
    block_tables: Int32Array
    """[G, B, M], unused entries repeating a sequence's first block, or the first that its window
    has not passed."""
    context_lens: Int32Array
    """[B]: cached tokens, this step's included."""
    cu_seqlens_q: Int32Array
    """[B + 1]: sequence b has the rows cu_seqlens_q[b] .. cu_seqlens_q[b + 1]."""
    entered_block_ids: list[int]
    """Blocks whose first slot is written now and whose last one is not yet."""
    pending_rows: list[int]
    """Single rows, whose token the step before draws: row i is that of sequence i."""

    @property
    def num_rows(self) -> int:
        return len(self.inputs[0])

    @property
    def first_rows(self) -> list[int]:
        """Per sequence the offset of its first row."""
        starts: list[int] = self.cu_seqlens_q[:-1].tolist()
        return starts

    @property
    def sampling_rows(self) -> list[int]:
        """The last row of each sequence that samples."""
        ends = self.cu_seqlens_q[1:].tolist()
        return [end - 1 for s, end in zip(self.sequences, ends, strict=True) if s.samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the model reads of a step, on its device."""

    token_ids: Tensor
    """[T] int64; pending rows are filled in later."""
    positions: Tensor
    """[T] int64."""
    groups: list[GroupContext]
    """Per layer group."""

    @classmethod
    def on(cls, device: torch.device, rows: StepRows) -> "Batch":
        inputs = to_device([rows.inputs], device)[0]
        batches = PagedBatch.of_groups(
            rows.block_tables, rows.context_lens, rows.cu_seqlens_q, rows.num_decodes, device
        )
        return cls(
            token_ids=inputs[TOKEN_IDS],
            positions=inputs[POSITIONS],
            groups=[
                GroupContext(batch, (block_ids, inputs[SLOTS]))
                for batch, block_ids in zip(batches, inputs[BLOCK_IDS:], strict=True)
            ],
        )


def lay_out(scheduled: Sequence[ScheduledSequence], block_size: int) -> StepRows:
    """Order a step's rows. `scheduled` is not empty and each sequence has at least one token."""
    sequences = sorted(scheduled, key=_row_order)
    lengths = np.array([len(s.token_ids) for s in sequences], dtype=np.int64)
    starts = np.array([s.start for s in sequences], dtype=np.int64)
    context_lens = starts + lengths
    cu_seqlens_q = np.zeros(len(sequences) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens_q[1:])
    tables = _block_tables(sequences, -(-context_lens // block_size))

    sequence_of_row = np.repeat(np.arange(len(sequences)), lengths)
    inputs = np.empty((BLOCK_IDS + len(tables), len(sequence_of_row)), dtype=np.int64)
    inputs[TOKEN_IDS] = [t for s in sequences for t in s.token_ids]
    positions = np.arange(cu_seqlens_q[-1]) + (starts - cu_seqlens_q[:-1])[sequence_of_row]
    inputs[POSITIONS] = positions
    inputs[SLOTS] = positions % block_size
    inputs[BLOCK_IDS:] = tables[:, sequence_of_row, positions // block_size]
    return StepRows(
        sequences=sequences,
        num_decodes=int(np.count_nonzero(lengths == 1)),
        inputs=inputs,
        block_tables=tables,
        context_lens=context_lens.astype(np.int32),
        cu_seqlens_q=cu_seqlens_q,
        entered_block_ids=_entered(tables, starts, context_lens, block_size),
        pending_rows=np.flatnonzero(inputs[TOKEN_IDS] == PENDING_TOKEN_ID).tolist(),
    )


def _row_order(sequence: ScheduledSequence) -> tuple[bool, int]:
    num_tokens = len(sequence.token_ids)
    return num_tokens > 1, -(sequence.start + num_tokens)


def _block_tables(sequences: Sequence[ScheduledSequence], num_blocks: Int64Array) -> Int32Array:
    """See `StepRows.block_tables`."""
    num_groups = len(sequences[0].blocks)
    tables = np.empty((num_groups, len(sequences), int(num_blocks.max())), dtype=np.int32)
    for group, rows in enumerate(tables):
        for row, sequence, used in zip(rows, sequences, num_blocks.tolist(), strict=True):
            block_ids, passed = sequence.blocks[group]
            row[passed:used] = block_ids[: used - passed]
            row[used:] = block_ids[0]
            if passed:
                row[:passed] = block_ids[0]
    return tables


def _entered(
    tables: Int32Array, starts: Int64Array, context_lens: Int64Array, block_size: int
) -> list[int]:
    last = context_lens // block_size
    partial = context_lens % block_size != 0
    entered = partial & (last * block_size >= starts)
    ids: list[int] = tables[:, entered, last[entered]].ravel().tolist()
    return ids
