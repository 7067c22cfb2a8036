"""Recorded steps: on a GPU one launch instead of a few hundred, on a CPU calls of C++ with no
Python between them.

A graph computes a fixed number of rows from inputs at fixed addresses. Steps of decodes, with or
without drafts, are padded to the next size that has a graph. On a CPU, where attention reads the
rows of a span when it is called, steps with pieces of prompts are padded, too. Other steps run
eagerly. Nothing is recorded at start-up. If recordings are expensive, a size runs eagerly until it
has occurred a few times, and is then recorded. If they are cheap, a size is recorded when it first
occurs, and likely sizes before that, in idle time.

Only the recorder knows the device (`engine/llm/runner/cuda_recorder.py`,
`kernels/native_recording.py`); tests replace it by one that runs the same code again.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from time import thread_time
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import numpy as np
import structlog
import torch
from torch import Tensor

from engine.llm.runner.batch import (
    BLOCK_IDS,
    POSITIONS,
    SLOTS,
    TOKEN_IDS,
    Batch,
    Int32Array,
    StepRows,
)
from engine.models.adapters import NO_ADAPTER
from engine.models.forward_context import GroupContext
from kernels import PagedBatch
from kernels.shared.recurrent_batch import NO_SLOT, RecurrentBatch
from kernels.shared.transfer import to_device

P = ParamSpec("P")
R = TypeVar("R")

EAGER_STEPS = 3
"""How many steps of a size run eagerly before it gets a recording that is not cheap."""
MOST_ROWS_AHEAD = 256
"""The most rows of steps that are recorded before they occur."""
AHEAD_S = 3.0
"""The processor seconds that recording ahead may take in all, and again with adapters whenever
these have moved."""
SHORTEST_CONTEXT = 1024
"""The fewest keys for which attention is recorded; further sizes are 4, 16, … times as many. In a
grid for the longest context most programs would have nothing to do."""

log = structlog.get_logger(__name__)


class AtOnce(Executor):
    """An executor that does its work before `submit` returns."""

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """See `Executor.submit`."""
        future: Future[R] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Recording(Protocol):
    """Work whose launches are recorded."""

    def replay(self) -> Tensor:
        """Do the work again with the current inputs. The next replay of any recording reuses the
        result's memory."""
        ...


class Recorder(Protocol):
    """Records what a function launches. It is called where `StepGraphs.background` works."""

    @property
    def is_cheap(self) -> bool:
        """Whether a recording takes hardly longer than a step that runs eagerly."""
        ...

    def padded(self, num_rows: int) -> int:
        """The number of rows to record for steps of `num_rows` rows: at least as many."""
        ...

    def padded_with_prompts(self, num_rows: int) -> int | None:
        """The same for steps whose spans may have several rows; None if these are not recorded."""
        ...

    def record(self, run: Callable[[], Tensor]) -> Recording:
        """Record what `run` launches. It is called once or several times, perhaps not for real, so
        what it computes then means nothing. Any error is raised."""
        ...


class StepKind(NamedTuple):
    """What a step has beside decodes of the base model."""

    has_adapters: bool
    has_prompts: bool


@dataclass(frozen=True, slots=True, order=True)
class GraphSize:
    """The size for which a graph is recorded."""

    num_rows: int
    max_context_len: int
    has_adapters: bool = False
    """Whether the graph is for steps in which some row has an adapter; other steps do without their
    cost."""
    has_prompts: bool = False
    """Whether the graph is for steps with spans of several rows."""

    @property
    def kind(self) -> StepKind:
        """The kind of step, by which calls differ."""
        return StepKind(self.has_adapters, self.has_prompts)


class StepGraph:
    """A recorded step and its inputs. Rows behind those of a step are padding: they decode token 0,
    without an adapter, at the start of the scratch block, which belongs to no sequence. Their
    recurrent states start from zero and end in the scratch slot, perhaps several at a time, since
    nobody reads them. There are as many spans as rows; where some spans have several rows, the
    spare spans are empty."""

    def __init__(
        self,
        size: GraphSize,
        forward: Callable[[Batch], Tensor],
        recorder: Recorder,
        *,
        block_size: int,
        scratch_block: int,
        scratch_slot: int | None,
        num_groups: int,
        device: torch.device,
    ) -> None:
        self._scratch_block = scratch_block
        self._scratch_slot = scratch_slot
        num_rows = size.num_rows
        num_blocks = -(-size.max_context_len // block_size)
        self._inputs = torch.zeros(
            BLOCK_IDS + num_groups, num_rows, dtype=torch.int64, device=device
        )
        self._inputs[BLOCK_IDS:] = scratch_block
        self._tables = [
            torch.full((num_rows, num_blocks), scratch_block, dtype=torch.int32, device=device)
            for _ in range(num_groups)
        ]
        self._context_lens = torch.ones(num_rows, dtype=torch.int32, device=device)
        self._cu_seqlens_q = torch.arange(num_rows + 1, dtype=torch.int32, device=device)
        self._recurrent_offsets = self._cu_seqlens_q.clone()
        self._recurrent_slots = torch.full(
            (2, num_rows), scratch_slot or 0, dtype=torch.int32, device=device
        )
        self._max_context_len = size.max_context_len
        self._has_prompts = size.has_prompts
        self._adapter_slots = (
            torch.full((num_rows,), NO_ADAPTER, dtype=torch.int32, device=device)
            if size.has_adapters
            else None
        )
        self._recording = recorder.record(lambda: forward(self._batch()))

    @property
    def token_ids(self) -> Tensor:
        """Shape [num_rows], int64: the tokens of the step that was loaded last, then padding."""
        return self._inputs[TOKEN_IDS]

    def load(self, rows: StepRows) -> None:
        """Load a step into the inputs. The copies are queued behind replays of the previous
        step."""
        count, num_rows = rows.num_rows, self._inputs.shape[1]
        num_groups, num_spans, width = rows.block_tables.shape
        inputs = np.zeros((len(self._inputs), num_rows), dtype=np.int64)
        inputs[BLOCK_IDS:] = self._scratch_block
        inputs[:, :count] = rows.inputs
        tables = np.full((num_groups, num_rows, width), self._scratch_block, dtype=np.int32)
        tables[:, :num_spans] = rows.block_tables
        context_lens = np.ones(num_rows, dtype=np.int32)
        context_lens[:num_spans] = rows.context_lens
        device = self._inputs.device
        self._inputs.copy_(to_device([inputs], device)[0])
        *new_tables, new_context_lens = to_device([*tables, context_lens], device)
        for table, new_table in zip(self._tables, new_tables, strict=True):
            table[:, :width].copy_(new_table)
        self._context_lens.copy_(new_context_lens)
        if self._has_prompts:
            self._cu_seqlens_q.copy_(to_device([_padded(rows.cu_seqlens_q, num_rows)], device)[0])
        if rows.recurrent_slots is not None and rows.recurrent_offsets is not None:
            places = np.tile(np.array([[NO_SLOT], [self._scratch_slot]], np.int32), num_rows)
            places[:, : rows.recurrent_slots.shape[1]] = rows.recurrent_slots
            offsets = _padded(rows.recurrent_offsets, num_rows)
            new_offsets, new_places = to_device([offsets, places], device)
            self._recurrent_offsets.copy_(new_offsets)
            self._recurrent_slots.copy_(new_places)
        if self._adapter_slots is not None and rows.adapter_slots is not None:
            slots = np.full(num_rows, NO_ADAPTER, dtype=np.int32)
            slots[:count] = rows.adapter_slots
            self._adapter_slots.copy_(to_device([slots], device)[0])

    def replay(self) -> Tensor:
        """Run the step. Returns the hidden states, [num_rows, C]."""
        return self._recording.replay()

    def _batch(self) -> Batch:
        """Make a batch of the inputs. Kernels size their grids by the host's context lengths, so
        those are the longest that fit; the device knows how far a row really reads."""
        return Batch(
            token_ids=self._inputs[TOKEN_IDS],
            positions=self._inputs[POSITIONS],
            groups=[
                GroupContext(self._paged(table), (self._inputs[row], self._inputs[SLOTS]))
                for row, table in enumerate(self._tables, BLOCK_IDS)
            ],
            adapter_slots=self._adapter_slots,
            recurrent=self._recurrent_batch(),
        )

    def _recurrent_batch(self) -> RecurrentBatch | None:
        if self._scratch_slot is None:
            return None
        reads, writes = self._recurrent_slots
        return RecurrentBatch(
            cu_seqlens_q=self._recurrent_offsets, read_slots=reads, write_slots=writes
        )

    def _paged(self, table: Tensor) -> PagedBatch:
        num_rows = len(table)
        return PagedBatch(
            block_tables=table,
            context_lens=self._context_lens,
            cu_seqlens_q=self._cu_seqlens_q,
            num_decodes=num_rows,
            host_block_tables=np.full(tuple(table.shape), self._scratch_block, dtype=np.int32),
            host_context_lens=np.full(num_rows, self._max_context_len, dtype=np.int32),
            host_cu_seqlens_q=np.arange(num_rows + 1, dtype=np.int32),
        )


def _padded(offsets: Int32Array, num_rows: int) -> Int32Array:
    """Offsets of as many spans as rows: each row of padding is a span, the remaining ones are
    empty."""
    last = len(offsets) - 1
    ends = np.arange(num_rows + 1, dtype=np.int32) + (offsets[last] - last)
    ends[: last + 1] = offsets
    padded: Int32Array = np.minimum(ends, num_rows)
    return padded


class StepGraphs:
    """The graphs of one model, by size. Only the loop thread uses them, except for making
    recordings.

    Args:
        forward: computes the model on a batch, [T, C]; reads nothing else that changes.
        scratch_block: the block for the padding's keys and values.
        scratch_slot: the slot for the padding's recurrent states; None if the model has none.
        num_groups: the number of the model's layer groups (`engine.contract.kv_layout`).
        adapters: whether rows may have adapters.
        background: where recordings are made; by default a thread.
    """

    def __init__(
        self,
        forward: Callable[[Batch], Tensor],
        recorder: Recorder,
        *,
        max_num_rows: int,
        max_model_len: int,
        block_size: int,
        scratch_block: int,
        num_groups: int,
        device: torch.device,
        scratch_slot: int | None = None,
        adapters: bool = False,
        background: Executor | None = None,
    ) -> None:
        self._forward = forward
        self._recorder = recorder
        self._max_num_rows = max_num_rows
        self._max_model_len = max_model_len
        self._block_size = block_size
        self._scratch_block = scratch_block
        self._scratch_slot = scratch_slot
        self._num_groups = num_groups
        self._device = device
        self._adapters = adapters
        self._background = background or ThreadPoolExecutor(1, "record-graphs")
        self._ahead = {False: self._sizes_ahead(has_adapters=False), True: iter(())}
        """Recording ahead of steps without adapters and with them."""
        self._had_adapters = False
        """Whether the last step had adapters."""
        self._uses: Counter[GraphSize] = Counter()
        self._graphs: dict[GraphSize, Future[StepGraph]] = {}
        self._broken: set[StepKind] = set()
        """The kinds of steps of which one could not be recorded."""

    def find(self, rows: StepRows) -> StepGraph | None:
        """Find the graph that can run this step, if there is one already."""
        self._had_adapters = rows.adapter_slots is not None
        size = self._size_for(rows)
        if size is None or size.kind in self._broken:
            return None
        if size not in self._graphs:
            self._uses[size] += 1
            if not self._recorder.is_cheap and self._uses[size] <= EAGER_STEPS:
                return None
            self._begin(size)
        return self._recorded(size)

    def record_ahead(self) -> bool:
        """Record one of the sizes that are likely to be needed, those like the last step first.
        Returns False if it is not worth it or all is done."""
        first = self._had_adapters
        return next(self._ahead[first], False) or next(self._ahead[not first], False)

    def _begin(self, size: GraphSize) -> None:
        self._graphs[size] = self._background.submit(self.record, size)

    def _recorded(self, size: GraphSize) -> StepGraph | None:
        """The graph of a size whose recording has begun; None if it is not done yet, or failed."""
        recorded = self._graphs[size]
        if not recorded.done():
            return None
        if error := recorded.exception():
            self._broken.add(size.kind)
            log.warning(
                "recorded steps are off: a step could not be recorded; steps like it run eagerly, "
                "which is slower",
                num_rows=size.num_rows,
                adapters=size.has_adapters,
                prompts=size.has_prompts,
                reason=f"{type(error).__name__}: {error}",
            )
            return None
        return recorded.result()

    def _sizes_ahead(self, *, has_adapters: bool) -> Iterator[bool]:
        """Record one likely size for each True."""
        spent_s = 0.0
        for size in self._likely_sizes(has_adapters) if self._recorder.is_cheap else ():
            if spent_s >= AHEAD_S:
                return
            if size in self._graphs:
                continue
            if size.kind not in self._broken:
                started_s = thread_time()
                self._begin(size)
                self._recorded(size)
                spent_s += thread_time() - started_s
            yield True

    def renew_adapters(self) -> None:
        """Have steps with adapters recorded anew, because the adapters are new or have moved."""
        for known in (self._uses, self._graphs):
            for size in [size for size in known if size.has_adapters]:
                del known[size]
        self._broken = {kind for kind in self._broken if not kind.has_adapters}
        self._ahead[True] = self._sizes_ahead(has_adapters=True)

    @property
    def sizes(self) -> list[GraphSize]:
        """All sizes that a step of decodes can need, the largest first."""
        rows = {self._padded(n) for n in range(1, self._max_num_rows + 1)}
        contexts = [self._context_for(1)]
        while contexts[-1] < self._max_model_len:
            contexts.append(self._context_for(contexts[-1] + 1))
        kinds = (False, True) if self._adapters else (False,)
        found = [GraphSize(*size) for size in product(rows, contexts, kinds)]
        return sorted(found, reverse=True)

    def _likely_sizes(self, has_adapters: bool) -> list[GraphSize]:
        """The likely sizes, which are those of short texts, small ones first."""
        context = self._context_for(1)
        decodes = {self._padded(n) for n in range(1, min(MOST_ROWS_AHEAD, self._max_num_rows) + 1)}
        prompts = {self._recorder.padded_with_prompts(n) for n in range(1, MOST_ROWS_AHEAD + 1)}
        found = [GraphSize(num_rows, context, has_adapters) for num_rows in decodes]
        found += [
            GraphSize(num_rows, context, has_adapters, has_prompts=True)
            for num_rows in prompts
            if num_rows is not None
        ]
        return sorted(found)

    def _size_for(self, rows: StepRows) -> GraphSize | None:
        """The smallest size that holds a step; None if none does."""
        longest, num_rows = int(rows.context_lens.max()), rows.num_rows
        has_prompts = rows.num_decodes < len(rows.spans)
        has_adapters = rows.adapter_slots is not None
        if longest > self._max_model_len:
            return None
        if has_prompts:
            padded = self._recorder.padded_with_prompts(num_rows)
        else:
            padded = self._padded(num_rows) if num_rows <= self._max_num_rows else None
        if padded is None:
            return None
        return GraphSize(padded, self._context_for(longest), has_adapters, has_prompts)

    def _padded(self, num_rows: int) -> int:
        return min(self._recorder.padded(num_rows), self._max_num_rows)

    def _context_for(self, longest: int) -> int:
        max_context_len = SHORTEST_CONTEXT
        while max_context_len < longest:
            max_context_len *= 4
        return min(max_context_len, self._max_model_len)

    @torch.inference_mode()
    def record(self, size: GraphSize) -> StepGraph:
        """Record a graph right now; only the caller keeps it."""
        return StepGraph(
            size,
            self._forward,
            self._recorder,
            block_size=self._block_size,
            scratch_block=self._scratch_block,
            scratch_slot=self._scratch_slot,
            num_groups=self._num_groups,
            device=self._device,
        )
