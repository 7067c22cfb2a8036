"""The records of a prefix cache give what it holds, and say what the blocks are."""

import random
from dataclasses import replace

from engine.contract.prompt_states import StatePart
from engine.llm.cache.cache_journal import (
    CachedText,
    CacheJournal,
    ClearedBlocks,
    RemovedBlocks,
    StoredBlocks,
)
from engine.llm.cache.prefix_cache import PrefixCache, chain_root, extend_chain
from engine.llm.scheduler import Scheduler
from tests.helpers.llm.paged_executor import make_request, make_scheduler
from tests.helpers.llm.sessions import Session, run_sessions


class JournalledSession(Session):
    """A random run with a journal, which is read after each step."""

    def __post_init__(self) -> None:
        self.view: set[tuple[int, bytes]] = set()
        super().__post_init__()

    def make_scheduler(self) -> Scheduler:
        self.journal = CacheJournal(self.config.block_size, self.windows)
        return super().make_scheduler()

    def step(self, abort_rate: float) -> None:
        super().step(abort_rate)
        self.read_journal()

    def forget_cached(self) -> int:
        held = super().forget_cached()
        self.read_journal()
        assert not self.view
        return held

    def read_journal(self) -> None:
        for record in self.journal.take():
            self.seen[type(record).__name__] += 1
            if isinstance(record, ClearedBlocks):
                self.view.clear()
                continue
            entries = {(record.group, one) for one in record.hashes}
            assert len(entries) == len(record.hashes)
            if isinstance(record, RemovedBlocks):
                assert entries <= self.view
                self.view -= entries
            else:
                assert not entries & self.view
                self.view |= entries
                self.check_stored(record)
        assert self.view == self.scheduler.pool.cache._block_of.keys()

    def check_stored(self, record: StoredBlocks) -> None:
        """Its hashes follow from what it says."""
        size = self.config.block_size
        assert len(record.hashes) == len(record.keys) == len(record.token_ids) / size
        first = [key for key in record.keys[0] if isinstance(key, str)]
        salt = next(iter(first[record.adapter is not None :]), None)
        assert first[:1] == [record.adapter] or record.adapter is None
        assert salt is None or record.parent is None
        root = record.parent or chain_root(salt, record.adapter)
        parts = {part.digest.hex(): part for one in self.added.values() for part in one.states}
        states = [
            replace(parts[key[0]], start=index * size + key[1])
            for index, keys in enumerate(record.keys)
            for key in keys
            if not isinstance(key, str)
        ]
        of_each = {(part.start, part.digest): part for part in states}  # a part spans blocks
        self.seen["states"] += len(states)
        self.seen["salts"] += salt is not None
        self.seen["adapters"] += record.adapter is not None
        self.seen["later blocks"] += record.parent is not None
        chain = extend_chain([], root, record.token_ids, size, tuple(of_each.values()))
        assert chain == record.hashes


WHAT_THEY_SEE = {
    *("StoredBlocks", "RemovedBlocks", "ClearedBlocks"),
    *("states", "salts", "adapters", "later blocks"),
}


def test_the_records_of_any_run_give_what_is_cached_and_how_it_hashes() -> None:
    assert run_sessions(JournalledSession, 30).keys() >= WHAT_THEY_SEE


def test_a_pool_that_is_replaced_takes_the_records_with_it() -> None:
    journal = CacheJournal(2, (None,))
    scheduler = make_scheduler(block_size=2, journal=journal)
    text = CachedText.of(make_request("a", [1, 2]), [1, 2], [b"x" * 32])
    assert scheduler.pool.cache.register(scheduler.pool.allocate(), b"x" * 32)
    journal.store(text, 0, 0)
    assert [type(one) for one in journal.take()] == [ClearedBlocks, StoredBlocks]
    scheduler.start_over(keeps_blocks=False)
    assert journal.take() == [ClearedBlocks()]
    assert scheduler.pool.cache.journal is journal


def test_neighbouring_blocks_of_a_text_share_a_record() -> None:
    size, ids = 4, [random.randrange(1 << 40) for _ in range(20)]
    part = StatePart(start=6, length=5, content=b"\1\2\3")
    request = replace(make_request("a", ids, cache_salt="s", states=[part]), adapter="poet\x003")
    root = chain_root("s", "poet\x003")
    chain = extend_chain([], root, ids, size, request.states)
    text, journal = CachedText.of(request, ids, chain), CacheJournal(size, (None, 7))
    for group, index in ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (1, 4)):
        journal.store(text, index, group)
    mark = part.digest.hex()
    keys = [("poet", "s"), ("poet", (mark, 2)), ("poet", (mark, -2)), ("poet",), ("poet",)]
    assert journal.take() == [
        StoredBlocks(0, chain[:3], None, ids[:12], keys[:3], "poet"),
        StoredBlocks(1, chain[1:3], chain[0], ids[4:12], keys[1:3], "poet"),
        StoredBlocks(1, chain[4:], chain[3], ids[16:], keys[4:], "poet"),
    ]
    assert journal.take() == []


def test_what_is_indexed_twice_is_removed_once() -> None:
    journal = CacheJournal(1, (None,))
    cache = PrefixCache(10, journal=journal)
    assert [cache.register(block, b"a", 0) for block in (1, 1, 2)] == [True, False, False]
    cache.forget(2)
    assert journal.take() == []
    cache.forget(1)
    cache.forget(1)
    assert journal.take() == [RemovedBlocks(0, [b"a"])]
    assert cache.register(2, b"a", 0)
    assert cache.clear() == []
    cache.forget(2)
    assert journal.take() == [ClearedBlocks()], "it was told with the others"
