"""Keeps copies of cached blocks on a disk: writes them behind the steps, and reads them again.

The loop's thread only copies memory. A thread writes, one reads, and one asks whether files exist,
so that no step waits for the disk.
"""

import hashlib
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import structlog

from engine.contract.generate import GenerateRequest, KvStoreCounts
from engine.llm.cache.prefix_cache import PrefixCache
from engine.llm.kv_store.block_files import BlockFiles
from engine.llm.kv_store.block_source import BlockMemory, Entry, Look, identity

_QUEUED_BYTES = 64 << 20
"""The most bytes that wait to be written."""
_MOST_OFFERED = 1 << 14
"""The most blocks that wait to be copied."""
_PAUSE_S = 30.0
"""The time without writing after the disk has failed."""
_REST_S = 30.0
"""How long the store is not used after the disk did not respond."""
_TOUCH_AGAIN_S = 60.0
_MOST_TOUCHED = 4096

log = structlog.get_logger(__name__)


class KvStore:
    """The blocks of one model in `BlockFiles`: a `BlockSource`, and more.

    Args:
        computed_by: everything that shapes the contents of blocks beside the text, but not the
            files with the weights.
    """

    def __init__(self, files: BlockFiles, memory: BlockMemory, computed_by: object) -> None:
        self.memory = memory
        self.most_reads = 1  # at a time, as disks like it
        self._news = threading.Event()
        """Set whenever a block has been written."""
        self._files = files
        self._computed_by = computed_by
        self._root = b""
        self._offered: OrderedDict[Entry, None] = OrderedDict()
        self._touched: OrderedDict[Entry, float] = OrderedDict()
        self._queued_bytes = 0
        self._lock = threading.Lock()
        self._paused_until_s = self._rests_until_s = 0.0
        self._num_written = self._num_bytes_written = self._num_lost = 0
        self.num_read = 0
        """The number of blocks that were read; other counts are in `counts`."""
        self._writer, self.reader, self._asker = (
            ThreadPoolExecutor(1, f"kv-store-{name}") for name in ("write", "read", "ask")
        )

    def open(self, weights: str) -> None:
        """Begin to use the folder, once the digest of the weights' files is known."""
        self._root = identity(self._computed_by, weights)

    @property
    def is_open(self) -> bool:
        """Whether blocks can be found."""
        return bool(self._root)

    @property
    def has_work(self) -> bool:
        """Whether blocks wait to be copied."""
        return bool(self._offered)

    def counts(self) -> KvStoreCounts:
        """What was done so far."""
        return KvStoreCounts(
            num_blocks_read=self.num_read,
            num_bytes_read=self.num_read * self.memory.block_bytes,
            num_blocks_written=self._num_written,
            num_bytes_written=self._num_bytes_written,
            num_blocks_lost=self._num_lost,
            num_files_refused=self._files.num_refused,
        )

    def offer(self, hashes: Iterable[bytes], num_groups: int) -> None:
        """Note that the prefix cache has new blocks, which are to be written."""
        if not self.is_open:
            return
        for block_hash in hashes:
            for group in range(num_groups):
                self._offered[group, block_hash] = None
        while len(self._offered) > _MOST_OFFERED:
            self._offered.popitem(last=False)
            self._num_lost += 1

    def copy_out(self, cache: PrefixCache, until_s: float) -> None:
        """Copy offered blocks to the writer's queue, as long as it has room and until
        `perf_counter` says `until_s`."""
        size = self.memory.block_bytes
        while self._offered and time.perf_counter() < until_s:
            if self._queued_bytes and self._queued_bytes + size > _QUEUED_BYTES:
                return
            (group, block_hash), _ = self._offered.popitem(last=False)
            found = cache.find([block_hash], group)
            if not found or time.monotonic() < self._paused_until_s:
                self._num_lost += 1
                continue
            contents = self.memory.copy_out(found[0])
            with self._lock:
                self._queued_bytes += size
            key, seconds = self._key((group, block_hash)), cache.pinned_s(found[0])
            self._writer.submit(self._write, key, contents, seconds)

    def touch(self, entries: Sequence[Entry], seconds: float = 0.0) -> None:
        """Note that the blocks at the beginning of a text are used from memory, or are pinned for
        some seconds, so that their files stay, too."""
        until_s, last = time.monotonic() + seconds, entries[-1]
        if not self.is_open or until_s < self._touched.get(last, -math.inf) + _TOUCH_AGAIN_S:
            return
        self._touched[last] = until_s
        while len(self._touched) > _MOST_TOUCHED:
            self._touched.popitem(last=False)
        keys = [self._key(entry) for entry in reversed(entries)]
        self._writer.submit(self._files.touch, keys, seconds)

    def may_have(self, request: GenerateRequest) -> bool:
        """See `BlockSource`. An adapter's key stands for other weights after a restart."""
        is_asked = self.is_open and time.monotonic() > self._rests_until_s
        return is_asked and request.adapter is None

    def ask(self, request: GenerateRequest, look: Look) -> "Future[list[Entry]]":
        """See `BlockSource`."""
        return self._asker.submit(look, lambda entry: self._files.has(self._key(entry)))

    def read(
        self, request: GenerateRequest, entries: Sequence[Entry]
    ) -> Generator[tuple[Entry, memoryview]]:
        """See `BlockSource`."""
        for entry in entries:
            contents = self._files.read(self._key(entry), self.memory.block_bytes)
            if contents is None:
                return
            yield entry, contents

    def let_go(self, request: GenerateRequest) -> None:
        """See `BlockSource`."""

    def note_silence(self) -> None:
        """See `BlockSource`."""
        log.warning("the KV store does not respond; trying again later", seconds=_REST_S)
        self._rests_until_s = time.monotonic() + _REST_S

    def close(self, cache: PrefixCache, within_s: float) -> None:
        """Write what is offered, for at most `within_s`, and end the threads."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s and (self._offered or self._queued_bytes):
            self.copy_out(cache, time.perf_counter() + within_s)
            self._news.wait(0.01)
            self._news.clear()
        for thread in (self._writer, self.reader, self._asker):
            thread.shutdown(wait=False, cancel_futures=True)

    def _key(self, entry: Entry) -> bytes:
        group, block_hash = entry
        return hashlib.sha256(self._root + group.to_bytes(2, "little") + block_hash).digest()

    def _write(self, key: bytes, contents: memoryview, seconds: float) -> None:
        try:
            num_bytes = self._files.write(key, contents)
            self._files.touch([key] if seconds else [], seconds)
            self._num_written += num_bytes > 0
            self._num_bytes_written += num_bytes
        except OSError as error:
            self._num_lost += 1
            if time.monotonic() >= self._paused_until_s:
                log.warning(
                    "the KV store cannot be written; trying again later",
                    reason=error.strerror,
                    seconds=_PAUSE_S,
                )
            self._paused_until_s = time.monotonic() + _PAUSE_S
        finally:
            with self._lock:
                self._queued_bytes -= len(contents)
            self._news.set()
