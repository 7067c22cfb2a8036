"""A sequence's blocks in several layer groups: windows, forks, what the cache has of a text."""

import random

from engine.contract.kv_layout import KvLayout
from engine.llm.cache.kv_cache import BlockPool
from engine.llm.cache.prefix_cache import PrefixCache
from engine.llm.cache.sequence_blocks import SequenceBlocks, find_cached


def make_blocks(
    num_tokens: int, windows: tuple[int | None, ...] = (None, 6), num_blocks: int = 20
) -> tuple[BlockPool, SequenceBlocks]:
    """A text in blocks of 4 tokens."""
    layout = KvLayout(block_size=4, windows=windows, max_in_flight=8)
    pool = BlockPool(num_blocks, 4, PrefixCache(100), layout)
    blocks = SequenceBlocks(pool)
    assert blocks.reserve(num_tokens)
    blocks.advance(num_tokens)
    return pool, blocks


def is_there(
    pool: BlockPool, chain: list[bytes], windows: tuple[int | None, ...], most: int
) -> bool:
    """Whether all is cached that the token after these blocks, or after `most`, looks at."""
    next_at = min(len(chain) * 4, most)
    return all(
        pool.cache.has(block_hash, group)
        for group, window in enumerate(windows)
        for index, block_hash in enumerate(chain)
        if window is None or (index + 1) * 4 > next_at - window + 1
    )


def test_a_window_gives_back_what_it_has_passed() -> None:
    pool, blocks = make_blocks(16)
    whole, sliding = blocks.tables
    assert (pool.num_held, pool.num_slots_written) == (8, 32)
    blocks.leave(16)  # the last token sees 6 back: those from 10 on, in the third block
    assert (whole.num_passed, len(whole.block_ids)) == (0, 4)
    assert (sliding.num_passed, sliding.block_ids) == (2, [6, 7])
    assert (pool.num_held, pool.num_slots_written, pool.num_free) == (6, 24, 14)
    blocks.leave(16)
    assert pool.num_held == 6, "twice is as good as once"
    pool.check_invariants(blocks.tables)
    assert blocks.reserve(18)
    blocks.advance(18)
    assert sliding.block_ids == [6, 7, 4], "the last freed is the first taken, then untouched"
    assert pool.num_slots_unused == 4
    pool.check_invariants(blocks.tables)
    blocks.clear()
    assert (pool.num_held, pool.num_slots_written, sliding.num_passed) == (0, 0, 0)
    pool.check_invariants([])


def test_what_is_in_flight_is_not_passed() -> None:
    _, blocks = make_blocks(16)
    blocks.leave(8)
    assert blocks.tables[1].num_passed == 0
    blocks.leave(10)
    assert blocks.tables[1].num_passed == 1


def test_a_fork_shares_what_the_window_has_left() -> None:
    pool, blocks = make_blocks(16)
    blocks.leave(16)
    assert blocks.can_fork(15), "the last token can be computed again"
    assert not blocks.can_fork(12)
    fork = blocks.fork(15)
    assert [t.block_ids for t in fork.tables] == [t.block_ids for t in blocks.tables]
    pool.check_invariants([*blocks.tables, *fork.tables])
    assert fork.blocks_to_reach(16) == 2, "the last block of both groups is copied"
    assert fork.reserve(16)
    assert len(pool.take_copies()) == 2
    blocks.clear()
    fork.advance(16)
    pool.check_invariants(fork.tables)


def test_reserve_takes_blocks_for_all_groups_or_none() -> None:
    pool, blocks = make_blocks(8, num_blocks=5)
    assert not blocks.reserve(9)
    assert (pool.num_held, blocks.num_blocks) == (4, 4)


def test_a_long_text_needs_the_window_only() -> None:
    pool, blocks = make_blocks(0, windows=(8,), num_blocks=6)
    # The window and 8 tokens in flight, wherever a block begins.
    assert pool.num_slots > 10**6
    assert blocks.blocks_to_reach(10**6) == 5
    for end in range(8, 400, 8):
        assert blocks.reserve(end)
        blocks.advance(end)
        blocks.leave(end)
    assert blocks.num_blocks == 2
    pool.check_invariants(blocks.tables)


def test_the_longest_cached_beginning_equals_a_search() -> None:
    for _ in range(200):
        windows = tuple(random.choice([None, random.randint(1, 30)]) for _ in range(3))
        pool, _ = make_blocks(0, windows=windows, num_blocks=100)
        length = random.randint(0, 60)
        chain = [bytes([index]) for index in range(length // 4)]
        for group in range(3):
            rate = random.choice([0.0, 0.1, 0.5])
            for block_hash in chain:
                if random.random() >= rate:
                    pool.cache.register(pool.allocate(), block_hash, group)
        most = max(0, length - random.choice([0, 1, 1]))

        lengths = range(len(chain) + 1)
        best = max(n for n in lengths if is_there(pool, chain[:n], windows, most))
        found = find_cached(pool, chain, most)
        assert found.num_tokens == min(best * 4, most)
        blocks = SequenceBlocks(pool).adopt(found)
        assert all(table.can_fork(found.num_tokens) for table in blocks.tables)
        for group, table in enumerate(blocks.tables):
            expected = [pool.cache.find([h], group)[0] for h in chain[table.num_passed : best]]
            assert table.block_ids == expected
