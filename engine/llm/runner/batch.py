"""Turns a decision into the arrays of one forward pass, with a few NumPy calls per step.

Rows are ordered for the kernels, not as the decision lists them. They form spans, which attention
takes as sequences: single rows come first, the longest context first, then prompt chunks. A decode
with drafts has a span per row, each over the keys of the rows before it. A step of decodes thus has
the same shape as any other with as many rows, recorded or not. Where a recurrent state reads them
in order, the rows of such a decode are adjacent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.llm.decision import PENDING_TOKEN_ID, SampleRow, ScheduledSequence, StateRows
from engine.models.adapters import NO_ADAPTER
from engine.models.forward_context import GroupContext
from kernels import PagedBatch
from kernels.shared.recurrent_batch import NO_SLOT, RecurrentBatch
from kernels.shared.transfer import to_device

Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]

TOKEN_IDS, POSITIONS, SLOTS, BLOCK_IDS = range(4)
"""The order of what `StepRows.inputs` holds for each row; from `BLOCK_IDS` on, one entry per layer
group."""

_NO_SLOTS: Mapping[int, int] = {}


class Span(NamedTuple):
    """Rows of one sequence that attention takes together."""

    sequence: ScheduledSequence
    first: int
    """The index of the span's first row among its sequence's rows."""
    num_rows: int
    context_len: int
    """The number of tokens that the span's last row attends to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRows:
    """One step's T rows in B spans, on the host."""

    spans: list[Span]
    """The spans, in row order."""
    num_decodes: int
    """The number of spans with a single row; they come first, the longest context first."""
    inputs: Int64Array
    """Shape [3 + G, T]: token id (`PENDING_TOKEN_ID` in pending rows), position, the slot for key
    and value, and the block of that slot in each layer group."""
    block_tables: Int32Array
    """Shape [G, B, M]; unused entries repeat a sequence's first block, or the first that its window
    has not passed."""
    context_lens: Int32Array
    """Shape [B]: cached tokens, the span's included."""
    cu_seqlens_q: Int32Array
    """Shape [B + 1]: span b has the rows cu_seqlens_q[b] .. cu_seqlens_q[b + 1]."""
    entered_block_ids: list[int]
    """Blocks whose first slot is written in this step, without those that one span fills up."""
    pending_rows: list[int]
    """Single rows whose token the previous step draws; row i belongs to span i."""
    drawing_rows: list[int]
    """Rows from whose logits a token is drawn; those of one sequence are adjacent, in its order."""
    draws: list[SampleRow]
    """The draw of each drawing row."""
    adapter_slots: Int32Array | None
    """Shape [T]: the slot of each row's adapter, `NO_ADAPTER` for rows without one; None when no
    row has an adapter."""
    states: list[StateRows]
    """The rows that are states, counted in the step."""
    key_ends: Int32Array | None
    """Shape [T], see `PagedBatch`; None when no row sees keys behind its own."""
    axes: Int64Array | None
    """Shape [3, T]: the positions in time, height and width; None when these are equal."""
    recurrent_slots: Int32Array | None
    """Shape [2, N]: the slots that each of the step's N sequences reads and writes; None without
    recurrent states."""
    recurrent_offsets: Int32Array | None
    """Shape [N + 1], like `cu_seqlens_q`, with all rows of a sequence together."""

    @property
    def num_rows(self) -> int:
        return len(self.inputs[0])

    @property
    def first_rows(self) -> list[int]:
        """The offset of each span's first row."""
        starts: list[int] = self.cu_seqlens_q[:-1].tolist()
        return starts


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What the model reads of a step, on its device."""

    token_ids: Tensor
    """Shape [T], int64; pending rows are filled in later."""
    positions: Tensor
    """Shape [T], int64; [3, T] if the rows of pictures have axes."""
    groups: list[GroupContext]
    """One context per layer group."""
    adapter_slots: Tensor | None = None
    """Shape [T], int32, as in `StepRows`."""
    recurrent: RecurrentBatch | None = None
    """The rows and slots of recurrent states; None without any."""

    @classmethod
    def on(cls, device: torch.device, rows: StepRows) -> "Batch":
        inputs = to_device([rows.inputs], device)[0]
        slots = rows.adapter_slots
        batches = PagedBatch.of_groups(
            rows.block_tables,
            rows.context_lens,
            rows.cu_seqlens_q,
            rows.num_decodes,
            device,
            rows.key_ends,
        )
        return cls(
            token_ids=inputs[TOKEN_IDS],
            positions=inputs[POSITIONS] if rows.axes is None else to_device([rows.axes], device)[0],
            groups=[
                GroupContext(batch, (block_ids, inputs[SLOTS]))
                for batch, block_ids in zip(batches, inputs[BLOCK_IDS:], strict=True)
            ],
            adapter_slots=None if slots is None else to_device([slots], device)[0],
            recurrent=_recurrent_batch(rows, device),
        )


def _recurrent_batch(rows: StepRows, device: torch.device) -> RecurrentBatch | None:
    if rows.recurrent_slots is None or rows.recurrent_offsets is None:
        return None
    reads, writes = rows.recurrent_slots
    return RecurrentBatch.from_host(rows.recurrent_offsets, reads, writes, device)


def lay_out(
    scheduled: Sequence[ScheduledSequence],
    block_size: int,
    adapter_slots: Mapping[int, int] = _NO_SLOTS,
    *,
    looks_both_ways: bool = False,
) -> StepRows:
    """Order a step's rows. `scheduled` is not empty, and each sequence has at least one token.

    Args:
        adapter_slots: the adapter's slot by sequence id, for sequences that have one.
        looks_both_ways: see `engine.contract.picture_facts.PictureFacts`.
    """
    spans = sorted((span for s in scheduled for span in _spans(s)), key=_row_order)
    lengths = np.array([span.num_rows for span in spans], dtype=np.int64)
    context_lens = np.array([span.context_len for span in spans], dtype=np.int64)
    starts = context_lens - lengths
    cu_seqlens_q = np.zeros(len(spans) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens_q[1:])
    tables = _block_tables(spans, -(-context_lens // block_size))

    span_of_row = np.repeat(np.arange(len(spans)), lengths)
    inputs = np.empty((BLOCK_IDS + len(tables), len(span_of_row)), dtype=np.int64)
    inputs[TOKEN_IDS] = [
        t for s, first, num_rows, _ in spans for t in s.token_ids[first : first + num_rows]
    ]
    positions = np.arange(cu_seqlens_q[-1]) + (starts - cu_seqlens_q[:-1])[span_of_row]
    axes = _axes(spans, positions)
    inputs[POSITIONS] = positions if axes is None else axes[0]
    inputs[SLOTS] = positions % block_size
    inputs[BLOCK_IDS:] = tables[:, span_of_row, positions // block_size]
    drawing_rows, draws = _draws(spans, cu_seqlens_q[:-1].tolist())
    states = []
    if any(s.states for s in scheduled):
        states = _states(spans, cu_seqlens_q[:-1].tolist())
    return StepRows(
        spans=spans,
        num_decodes=int(np.count_nonzero(lengths == 1)),
        inputs=inputs,
        block_tables=tables,
        context_lens=context_lens.astype(np.int32),
        cu_seqlens_q=cu_seqlens_q,
        entered_block_ids=_entered(tables, starts, context_lens, block_size),
        pending_rows=np.flatnonzero(inputs[TOKEN_IDS] == PENDING_TOKEN_ID).tolist(),
        drawing_rows=drawing_rows,
        draws=draws,
        adapter_slots=_adapter_slots(spans, adapter_slots, span_of_row),
        states=states,
        key_ends=_key_ends(positions, states) if looks_both_ways and states else None,
        axes=axes if states else None,
        recurrent_slots=_recurrent_slots(spans),
        recurrent_offsets=_recurrent_offsets(spans, cu_seqlens_q),
    )


def _spans(sequence: ScheduledSequence) -> list[Span]:
    start, num_rows = sequence.start, len(sequence.token_ids)
    if num_rows > 1 and sequence.is_decode:
        return [Span(sequence, row, 1, start + row + 1) for row in range(num_rows)]
    return [Span(sequence, 0, num_rows, start + num_rows)]


def _row_order(span: Span) -> tuple[bool, int, int, int]:
    if span.sequence.recurrent is None:
        return span.num_rows > 1, -span.context_len, 0, 0
    sequence = span.sequence
    return span.num_rows > 1, -sequence.start, sequence.seq_id, span.first


def _draws(spans: Sequence[Span], first_rows: Sequence[int]) -> tuple[list[int], list[SampleRow]]:
    """Return `StepRows.drawing_rows` and `StepRows.draws`."""
    rows: list[int] = []
    draws: list[SampleRow] = []
    has_drafts = False
    for (sequence, first, num_rows, _), first_row in zip(spans, first_rows, strict=True):
        if sequence.num_draws == 1 and num_rows == len(sequence.token_ids):
            rows.append(first_row + num_rows - 1)
            draws.append(SampleRow(sequence.seq_id, sequence.num_output_tokens))
            continue
        num_silent = len(sequence.token_ids) - sequence.num_draws
        has_drafts |= sequence.num_draws > 1
        for at in range(max(first, num_silent), first + num_rows):
            nth = at - num_silent
            draft = sequence.token_ids[at] if nth else None
            rows.append(first_row + at - first)
            draws.append(SampleRow(sequence.seq_id, sequence.num_output_tokens + nth, draft))
    if has_drafts:  # rows of different sequences are mixed
        order = sorted(range(len(draws)), key=lambda i: (draws[i].seq_id, draws[i].position))
        return [rows[i] for i in order], [draws[i] for i in order]
    return rows, draws


def _states(spans: Sequence[Span], first_rows: Sequence[int]) -> list[StateRows]:
    """Return `StepRows.states`."""
    found = []
    for (sequence, first, num_rows, _), first_row in zip(spans, first_rows, strict=True):
        for one in sequence.states:
            start = max(one.first_row, first)
            end = min(one.first_row + one.num_rows, first + num_rows)
            if start < end:
                first_state = one.first_state + start - one.first_row
                found.append(
                    StateRows(one.digest, first_state, first_row + start - first, end - start)
                )
    return found


def _key_ends(positions: Int64Array, states: Sequence[StateRows]) -> Int32Array:
    """Return `StepRows.key_ends`: the rows of a part, which end with a span, see all of it."""
    ends = positions + 1
    for one in states:
        last = one.first_row + one.num_rows - 1
        ends[one.first_row : last] = ends[last]
    return ends.astype(np.int32)


def _axes(spans: Sequence[Span], positions: Int64Array) -> Int64Array | None:
    """Return the rows' positions in time, height and width, [3, T]; None if all are `positions`."""
    if all(span.sequence.positions is None for span in spans):
        return None
    axes, end = np.tile(positions, (3, 1)), 0
    for sequence, first, num_rows, _ in spans:
        start, end = end, end + num_rows
        if sequence.positions is not None:
            axes[:, start:end] = sequence.positions[:, first : first + num_rows]
    return axes


def _recurrent_slots(spans: Sequence[Span]) -> Int32Array | None:
    """Return `StepRows.recurrent_slots`."""
    of_sequences = (span.sequence.recurrent for span in spans if span.first == 0)
    slots = [
        (NO_SLOT if s.read is None else s.read, s.write) for s in of_sequences if s is not None
    ]
    return np.array(slots, dtype=np.int32).T.copy() if slots else None


def _recurrent_offsets(spans: Sequence[Span], cu_seqlens_q: Int32Array) -> Int32Array | None:
    """Return `StepRows.recurrent_offsets`."""
    if spans[0].sequence.recurrent is None:
        return None
    begins = [span.first == 0 for span in spans]
    return cu_seqlens_q[[*begins, True]]


def _adapter_slots(
    spans: Sequence[Span], slots: Mapping[int, int], span_of_row: Int64Array
) -> Int32Array | None:
    """Return `StepRows.adapter_slots`."""
    if not slots or not any(span.sequence.seq_id in slots for span in spans):
        return None
    of_spans = [slots.get(span.sequence.seq_id, NO_ADAPTER) for span in spans]
    return np.array(of_spans, dtype=np.int32)[span_of_row]


def _block_tables(spans: Sequence[Span], num_blocks: Int64Array) -> Int32Array:
    """Return `StepRows.block_tables`."""
    num_groups = len(spans[0].sequence.blocks)
    tables = np.empty((num_groups, len(spans), int(num_blocks.max())), dtype=np.int32)
    for group, rows in enumerate(tables):
        for row, span, used in zip(rows, spans, num_blocks.tolist(), strict=True):
            block_ids, passed = span.sequence.blocks[group]
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
