"""Holds requests while blocks of their prompts are read, from a disk or another worker, and others
run.

    asked          a thread looks which blocks there are; most requests begin right after that
    waiting        for the requests before them, as few are read at a time
    being read     a thread reads, the loop copies blocks to the pool between steps

The blocks enter the prefix cache, where the scheduler finds them like any others. A request for
which nothing more comes begins without the rest of its blocks.
"""

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

from engine.contract.generate import GenerateRequest, KvStoreCounts
from engine.contract.kv_layout import KvLayout
from engine.errors import OutOfBlocks
from engine.llm.cache.cache_journal import CachedText
from engine.llm.cache.kv_cache import BlockPool
from engine.llm.cache.prefix_cache import chain_root, extend_chain
from engine.llm.cache.sequence_blocks import find_reach
from engine.llm.kv_store.block_source import BlockSource, Entry
from engine.llm.kv_store.kv_store import KvStore
from engine.runtime.side_work import SIDE_WORK

_ASK_S = 0.002
"""How long a step waits to learn whether there are files."""
_COPY_S = 0.003
_COPY_SHARE = 0.1
_MOST_COPY_S = 0.05
"""How long blocks are copied from and to the pool before a step with other work: this share of the
time of the step before, within these bounds."""
_NAP_S = 0.005
"""How long to wait when there is nothing else to do. Messages wait as long, too."""
_PATIENCE_S = 2.0
"""How long a request waits while nothing is read for it."""
_CLOSE_S = 3.0
_READ_AHEAD_BYTES = 64 << 20
_NOTHING = KvStoreCounts()


@dataclass(eq=False)
class _Held:
    """A request that waits."""

    request: GenerateRequest
    source: BlockSource
    chain: list[bytes]
    """The hashes of its prompt's full blocks."""
    asked: "Future[list[Entry]]"
    moved_s: float
    """When something was last done for it."""
    entries: list[Entry] = field(default_factory=list)
    """The blocks to read, from the beginning of the text on."""
    read: "queue.Queue[tuple[Entry, memoryview]] | None" = None
    """The blocks that were read; None if reading has not begun."""
    reading: "Future[None] | None" = None
    is_wanted: bool = True


class Restoring:
    """Requests that wait for blocks, first come, first served. Loop thread only.

    Args:
        store: the blocks on a disk, if there are any.
        others: where else blocks may be, asked before the disk.
        pool: returns the pool of blocks, which may be replaced.
        most_blocks: the most blocks to read for a prompt, as nobody holds them at first.
    """

    def __init__(
        self,
        store: KvStore | None,
        others: Sequence[BlockSource],
        pool: Callable[[], BlockPool],
        most_blocks: int,
    ) -> None:
        self._store = store
        self._sources = [*others, *([] if store is None else [store])]
        self._pool = pool
        self._most_blocks = most_blocks
        self._held: dict[str, _Held] = {}
        self._news = threading.Event()
        """Set whenever a thread has got on."""
        self._advanced_s = math.inf
        """When the last step began."""

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._held

    @property
    def has_work(self) -> bool:
        """Whether requests are held, or blocks wait to be copied."""
        return bool(self._held) or (self._store is not None and self._store.has_work)

    def counts(self) -> KvStoreCounts:
        """What the store has done."""
        return _NOTHING if self._store is None else self._store.counts()

    def open(self, weights: str) -> None:
        """See `KvStore.open`."""
        if self._store is not None:
            self._store.open(weights)

    def requests(self) -> list[GenerateRequest]:
        """All held requests."""
        return [held.request for held in self._held.values()]

    def source_of(self, request: GenerateRequest) -> BlockSource | None:
        """Where to look for blocks of a prompt, if that makes sense."""
        if request.sampling.prompt_logprobs is not None:
            return None
        return next((one for one in self._sources if one.may_have(request)), None)

    def add(self, request: GenerateRequest, source: BlockSource) -> bool:
        """Hold a request if the source may have blocks of its prompt. Returns whether it does."""
        pool = self._pool()
        layout, cache = pool.layout, pool.cache
        root = chain_root(request.cache_salt, None)
        ids = request.prompt_token_ids
        chain = extend_chain([], root, ids, pool.block_size, request.states)[: self._most_blocks]
        groups = range(len(layout.windows))
        here = {(g, h) for h in chain for g in groups if cache.has(h, g)}
        most = len(ids) - 1
        num_here, firsts = find_reach(layout, chain, most, here.__contains__)
        if num_here and self._store is not None:
            self._store.touch(_entries(chain, firsts, num_here))
        if num_here == len(chain):
            source.let_go(request)
            return False
        asked = source.ask(request, partial(_missing, layout, chain, most, here, num_here))
        asked.add_done_callback(lambda _: self._news.set())
        self._held[request.request_id] = _Held(request, source, chain, asked, time.monotonic())
        return True

    def forget(self, request_id: str) -> None:
        """Forget an aborted request; unknown ids are ignored."""
        held = self._held.pop(request_id, None)
        if held is not None:
            held.is_wanted = False
            held.asked.cancel()
            if held.reading is None:
                held.source.let_go(held.request)

    def advance(self, *, is_idle: bool) -> list[GenerateRequest]:
        """Copy blocks from and to the pool for a short time. Removes and returns the requests that
        can begin.

        Args:
            is_idle: whether there is no other work.
        """
        if not self.has_work:
            self._advanced_s = time.perf_counter()
            return []
        step_s = time.perf_counter() - self._advanced_s
        wait([held.asked for held in self._held.values()], timeout=_ASK_S)
        busy_s = min(max(_COPY_S, _COPY_SHARE * step_s), _MOST_COPY_S)
        until_s = time.perf_counter() + (_NAP_S if is_idle else busy_s)
        ready = [held for held in self._held.values() if self._is_ready(held, until_s)]
        for held in ready:
            self.forget(held.request.request_id)
        if self._store is not None:
            self._store.copy_out(self._pool().cache, until_s)
        left_s = until_s - time.perf_counter()
        if is_idle and not ready and left_s > 0:
            self._news.wait(left_s)
            self._news.clear()
        self._advanced_s = time.perf_counter()
        return [held.request for held in ready]

    def close(self) -> None:
        """Write what is not written yet, within a few seconds."""
        if self._store is not None:
            self._store.close(self._pool().cache, _CLOSE_S)

    def _is_ready(self, held: _Held, until_s: float) -> bool:
        if not held.asked.done():
            return self._gives_up(held)
        if held.read is None:
            if not held.asked.result():
                return True
            others = [one for one in self._held.values() if one.source is held.source]
            if sum(one.read is not None for one in others) >= held.source.most_reads:
                return time.monotonic() - held.moved_s > _PATIENCE_S
            self._begin_reading(held)
        return self._copy_in(held, until_s) or self._gives_up(held)

    def _gives_up(self, held: _Held) -> bool:
        """Whether a request has waited for the source long enough."""
        if time.monotonic() - held.moved_s <= _PATIENCE_S:
            return False
        held.source.note_silence()
        return True

    def _begin_reading(self, held: _Held) -> None:
        cache, source = self._pool().cache, held.source
        # Others may have read or computed some of them meanwhile.
        held.entries = [(g, h) for g, h in held.asked.result() if not cache.has(h, g)]
        num_ahead = _READ_AHEAD_BYTES // source.most_reads // source.memory.block_bytes
        held.read = queue.Queue(max(1, num_ahead))
        held.moved_s = time.monotonic()
        held.reading = SIDE_WORK.submit(source.reader, partial(self._read, held))

    def _read(self, held: _Held) -> None:
        """Read the blocks, up to the first that is not there. In a reading thread."""
        assert held.read is not None
        with closing(held.source.read(held.request, held.entries)) as blocks:
            for block in blocks:
                while held.is_wanted:
                    try:
                        held.read.put(block, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if not held.is_wanted:
                    break
                self._news.set()
        self._news.set()

    def _copy_in(self, held: _Held, until_s: float) -> bool:
        """Move blocks that were read to the pool. Returns whether all are there."""
        assert held.read is not None and held.reading is not None
        while time.perf_counter() < until_s:
            is_over = held.reading.done()  # asked first, as it may add blocks until then
            try:
                entry, contents = held.read.get_nowait()
            except queue.Empty:
                return is_over
            held.moved_s = time.monotonic()
            if not self._enter(held, entry, contents):
                return True
        return False

    def _enter(self, held: _Held, entry: Entry, contents: memoryview) -> bool:
        """Put a block into the prefix cache. Returns whether there was room."""
        (group, block_hash), pool = entry, self._pool()
        if pool.cache.has(block_hash, group):
            return True
        try:
            block_id = pool.allocate()
        except OutOfBlocks:
            return False
        held.source.memory.copy_in(block_id, contents)
        held.source.num_read += 1
        pool.set_written(block_id, pool.block_size)
        pool.cache.register(block_id, block_hash, group)
        if pool.cache.journal is not None:
            text = CachedText.of(held.request, held.request.prompt_token_ids, held.chain)
            pool.cache.journal.store(text, held.chain.index(block_hash), group)
        pool.release(block_id)
        return True


def _missing(
    layout: KvLayout,
    chain: list[bytes],
    most: int,
    here: set[Entry],
    num_here: int,
    is_there: Callable[[Entry], bool],
) -> list[Entry]:
    """Find the blocks that make more of a prompt known than the `num_here` blocks that are in
    memory. In the asking thread."""
    known = dict.fromkeys(here, True)

    def has(entry: Entry) -> bool:
        if entry not in known:
            known[entry] = is_there(entry)
        return known[entry]

    num_blocks, firsts = find_reach(layout, chain, most, has)
    if num_blocks <= num_here:
        return []
    return [entry for entry in _entries(chain, firsts, num_blocks) if entry not in here]


def _entries(chain: list[bytes], firsts: list[int], num_blocks: int) -> list[Entry]:
    """The blocks that a text of `num_blocks` blocks starts from, from its beginning on."""
    return [
        (group, chain[index])
        for index in range(num_blocks)
        for group, first in enumerate(firsts)
        if index >= first
    ]
