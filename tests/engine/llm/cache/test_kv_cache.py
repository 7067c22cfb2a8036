"""The pool of blocks and the tables over it."""

import random
from collections.abc import Callable

import pytest

from engine.errors import InvariantViolation, OutOfBlocks
from engine.llm.cache.kv_cache import BlockPool, BlockTable
from engine.llm.cache.prefix_cache import PrefixCache


def make_pool(num_blocks: int = 8, block_size: int = 4, max_idle: int = 100) -> BlockPool:
    return BlockPool(num_blocks, block_size, PrefixCache(max_idle))


def make_table(pool: BlockPool, num_tokens: int) -> BlockTable:
    table = BlockTable(pool)
    assert table.reserve(num_tokens)
    table.advance(num_tokens)
    return table


def cache_all(pool: BlockPool, table: BlockTable, name: str = "") -> None:
    for index, block_id in enumerate(table.block_ids[: table.num_tokens // pool.block_size]):
        pool.cache.register(block_id, f"{name}{index}".encode())


class TestPool:
    def test_used_blocks_are_handed_out_before_untouched_ones(self) -> None:
        pool = make_pool(6)
        assert [pool.allocate() for _ in range(4)] == [0, 1, 2, 3]
        for block_id in (1, 3, 0):
            pool.release(block_id)
        assert [pool.allocate() for _ in range(5)] == [0, 3, 1, 4, 5], "last freed first"

    def test_idle_cached_blocks_come_last_and_oldest_first(self) -> None:
        pool = make_pool(4)
        for block_id in (pool.allocate(), pool.allocate(), pool.allocate()):
            pool.cache.register(block_id, bytes([block_id]))
        for block_id in (1, 0, 2):
            pool.release(block_id)
        assert pool.num_free == 4
        assert [pool.allocate() for _ in range(4)] == [3, 1, 0, 2]
        assert pool.cache.find([b"\1"]) == []

    def test_an_exhausted_pool_says_so(self) -> None:
        pool = make_pool(2)
        pool.allocate(), pool.allocate()
        with pytest.raises(OutOfBlocks, match="all 2 KV blocks"):
            pool.allocate()
        assert pool.num_free == 0

    def test_a_block_is_freed_by_its_last_owner(self) -> None:
        pool = make_pool(1)
        block_id = pool.allocate()
        pool.hold(block_id)
        assert pool.is_shared(block_id)
        pool.release(block_id)
        assert not pool.is_shared(block_id)
        assert pool.num_free == 0
        pool.release(block_id)
        assert pool.num_free == 1

    def test_a_free_block_cannot_be_shared(self) -> None:
        pool = make_pool(2)
        pool.release(pool.allocate())
        with pytest.raises(KeyError):
            pool.hold(0)

    def test_blocks_dropped_from_the_cache_are_free(self) -> None:
        pool = make_pool(3, max_idle=1)
        table = make_table(pool, 12)
        cache_all(pool, table)
        table.clear()
        assert list(pool.cache.idle) == [0], "the beginning is what others can use"
        assert pool.num_free == 3
        pool.check_invariants([])


class TestCopyOnWrite:
    def test_a_shared_block_is_copied_once_both_write(self) -> None:
        pool = make_pool()
        parent = make_table(pool, 6)
        child = parent.fork(5)
        assert child.block_ids == parent.block_ids
        assert child.blocks_to_reach(6) == 1
        assert child.reserve(6)
        assert child.block_ids == [0, 2]
        assert parent.reserve(7), "the parent is alone now"
        assert parent.block_ids == [0, 1]
        assert pool.take_copies() == [(1, 2)]
        assert pool.take_copies() == []
        pool.check_invariants([parent, child])

    def test_a_cached_block_without_other_owners_is_written_in_place(self) -> None:
        pool = make_pool(1)
        table = make_table(pool, 4)
        cache_all(pool, table)
        table.truncate(3)
        assert pool.num_slots_unused == 0, "the cache still needs all four"
        assert table.reserve(4), "the only block there is"
        assert 0 not in pool.cache, "nobody may find it while it is written"
        assert pool.num_slots_unused == 1
        assert pool.take_copies() == []
        pool.check_invariants([table])

    def test_a_copy_of_a_copy_reads_the_first_source(self) -> None:
        pool = make_pool()
        first = make_table(pool, 2)
        second, third = first.fork(2), first.fork(2)
        assert second.reserve(3)
        fourth = second.fork(2)
        assert fourth.reserve(3)
        copies = {d: s for s, d in pool.take_copies()}
        assert copies == {second.block_ids[0]: 0, fourth.block_ids[0]: 0}
        pool.check_invariants([first, second, third, fourth])

    def test_the_source_stays_until_the_copy_is_made(self) -> None:
        pool = make_pool(3)
        parent = make_table(pool, 2)
        child = parent.fork(2)
        assert child.reserve(3)
        parent.clear()
        assert pool.num_free == 1, "block 0 is still to be read"
        assert pool.allocate() == 2
        assert pool.take_copies() == [(0, 1)]
        assert pool.num_free == 1

    def test_a_copy_nobody_wants_any_more_is_dropped(self) -> None:
        pool = make_pool()
        parent = make_table(pool, 2)
        child = parent.fork(2)
        assert child.reserve(3)
        parent.clear()
        child.clear()
        assert pool.num_free == 8
        assert pool.take_copies() == []
        pool.check_invariants([])


class TestTable:
    def test_reserve_changes_nothing_if_blocks_lack(self) -> None:
        pool = make_pool(3)
        parent = make_table(pool, 6)
        child = parent.fork(6)
        assert child.blocks_to_reach(9) == 2
        assert not child.reserve(9), "one block for the copy, one more to grow"
        assert child.block_ids == parent.block_ids == [0, 1]
        assert child.reserve(8), "the copy alone fits"
        assert pool.take_copies() == [(1, 2)]

    def test_blocks_that_a_run_of_tokens_fills(self) -> None:
        ends = [(3, []), (4, [0]), (5, []), (13, [1, 2]), (16, [3])]
        starts = [0] + [end for end, _ in ends]
        pool = make_pool()
        for start, (end, filled) in zip(starts, ends, strict=False):
            assert list(pool.filled_by(start, end)) == filled

    def test_truncate_gives_back_what_lies_behind(self) -> None:
        pool = make_pool()
        table = make_table(pool, 15)
        assert pool.num_slots_unused == 1
        table.truncate(9)
        assert (table.block_ids, pool.num_free, pool.num_slots_unused) == ([0, 1, 2], 5, 3)
        table.truncate(8)
        assert (table.block_ids, pool.num_slots_unused) == ([0, 1], 0)
        table.truncate(0)
        assert (table.block_ids, pool.num_free) == ([], 8)
        pool.check_invariants([])

    def test_the_end_of_a_text_is_evicted_before_its_beginning(self) -> None:
        pool = make_pool(3)
        table = make_table(pool, 12)
        cache_all(pool, table)
        table.clear()
        assert [pool.allocate() for _ in range(3)] == [2, 1, 0]

    def test_adopting_idle_blocks_takes_them_from_the_free_ones(self) -> None:
        pool = make_pool(4)
        table = make_table(pool, 8)
        cache_all(pool, table)
        table.clear()
        again = BlockTable(pool).adopt(pool.cache.find([b"0", b"1"]), 8)
        assert (again.block_ids, pool.num_free, pool.num_slots_unused) == ([0, 1], 2, 0)
        pool.check_invariants([again])


@pytest.mark.parametrize(
    ("corrupt", "noticed"),
    [
        (lambda pool, table: pool._free.append(0), "not all touched blocks, each once"),
        (lambda pool, table: pool._free.pop(), "not all touched blocks, each once"),
        (lambda pool, table: pool.ref_counts.__setitem__(0, 2), "reference counts"),
        (lambda pool, table: table.block_ids.append(table.block_ids[0]), "reference counts"),
        (lambda pool, table: pool.set_written(0, 3), "written slots"),
        (lambda pool, table: setattr(pool, "num_held", 3), "3 held, counted 2"),
        (lambda pool, table: pool.cache.register(pool._free[0], b"x"), "in the prefix cache"),
        (lambda pool, table: pool.cache._block_of.update({(0, b"x"): 0}), "two indexes"),
        (lambda pool, table: table.fork(3).reserve(4), "copies"),
    ],
)
def test_check_notices_corruption(
    corrupt: Callable[[BlockPool, BlockTable], object], noticed: str
) -> None:
    pool = make_pool()
    table = make_table(pool, 6)
    make_table(pool, 4).clear()
    pool.check_invariants([table])
    corrupt(pool, table)
    with pytest.raises(InvariantViolation, match=noticed):
        pool.check_invariants([table])


def test_random_tables_keep_their_contents() -> None:
    """Against a model that stores the tokens: what a table shows is what it was given."""
    for _ in range(30):
        pool = make_pool(
            random.randint(2, 30), random.choice([1, 2, 3, 4, 7]), random.choice([0, 2, 100])
        )
        size = pool.block_size
        slots = [[-1] * size for _ in range(pool.num_blocks)]
        live: list[tuple[BlockTable, list[int]]] = [(BlockTable(pool), [])]
        for _ in range(200):
            at = random.randrange(len(live))
            table, text = live[at]
            action = random.choice(["write"] * 3 + ["fork", "truncate", "clear", "forget"])
            if action == "write":
                end = len(text) + random.randint(1, 2 * size)
                free, needed = pool.num_free, table.blocks_to_reach(end)
                assert table.reserve(end) == (needed <= free)
                if needed <= free:
                    for source, destination in pool.take_copies():
                        slots[destination] = list(slots[source])
                    for position in range(len(text), end):
                        text.append(random.randrange(1000))
                        slots[table.block_ids[position // size]][position % size] = text[-1]
                    start = table.num_tokens
                    table.advance(end)
                    for index in pool.filled_by(start, end):
                        content = repr(text[: (index + 1) * size]).encode()
                        pool.cache.register(table.block_ids[index], content)
            elif action == "fork" and len(live) < 6:
                keep = random.randint(0, len(text))
                live.append((table.fork(keep), text[:keep]))
            elif action == "truncate":
                del text[random.randint(0, len(text)) :]
                table.truncate(len(text))
            elif action == "clear":
                table.clear()
                text.clear()
            elif action == "forget":
                pool.forget_cached()
            for table, text in live:
                shown = [
                    slots[table.block_ids[i // size]][i % size] for i in range(table.num_tokens)
                ]
                assert shown == text, action
        for table, _ in live:
            table.clear()
        pool.check_invariants([])
        assert pool.num_free == pool.num_blocks
