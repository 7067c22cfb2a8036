"""Keeps track of who holds which KV block: the pool of block ids, and the tables of blocks.

It handles ids only; the contents live in the model runner. Physical memory is committed when a
block is first written, so the pool hands out used blocks before untouched ones.

    table            block_ids  [ 7 | 3 | 9 ]            block_size 4
    tokens           [ 0 1 2 3 | 4 5 6 7 | 8 . . . ]     num_tokens 9: three slots are unused

A model whose layers look back over different distances has several layer groups, and each sequence
has a table per group (`engine.llm.cache.sequence_blocks`).
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

from engine.contract.kv_layout import KvLayout
from engine.errors import InvariantViolation, OutOfBlocks
from engine.llm.cache.prefix_cache import PrefixCache


class BlockPool:
    """A fixed number of blocks with reference counts.

    Each block is in exactly one state; its entry in `ref_counts` is above 0 only while it is held:

        untouched → free ⇄ held by tables, or as the source of a copy ordered in this step
                      ↖ idle in the prefix cache ⇄ ↗
    """

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        cache: PrefixCache,
        layout: KvLayout | None = None,
        recurrent: Any = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.cache = cache
        self.layout = layout or KvLayout(block_size=block_size)
        self.recurrent = recurrent
        """The `RecurrentPool` of a model with recurrent states, else None. It is made of a pool
        like this one."""
        self.num_slots = self.layout.most_tokens(num_blocks)
        """The most tokens that one sequence can have."""
        self.ref_counts = [0] * num_blocks
        self.num_held = 0
        self.num_slots_written = 0
        """The number of slots with a token in all held blocks. A shared block counts once, and a
        token once per group."""
        self._num_touched = 0
        self._free: list[int] = []
        self._num_written = [0] * num_blocks
        self._copy_sources: dict[int, int] = {}

    @property
    def num_free(self) -> int:
        """The number of blocks that `allocate` can give, idle cached ones included."""
        return self.num_blocks - self.num_held

    @property
    def num_slots_unused(self) -> int:
        """The number of slots without a token in held blocks."""
        return self.num_held * self.block_size - self.num_slots_written

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def filled_by(self, start: int, end: int) -> range:
        """The indexes of the blocks that tokens `start .. end` fill up."""
        return range(start // self.block_size, end // self.block_size)

    def allocate(self) -> int:
        """Take a block: the one freed last, else the next untouched one, else the one idle for
        longest.

        Raises:
            OutOfBlocks: every block is held.
        """
        if self._free:
            block_id = self._free.pop()
        elif self._num_touched < self.num_blocks:
            block_id = self._num_touched
            self._num_touched += 1
        elif self.num_held == self.num_blocks:
            raise OutOfBlocks(f"all {self.num_blocks} KV blocks are held by running requests")
        else:
            block_id = self.cache.evict()
        self.ref_counts[block_id] = 1
        self._num_written[block_id] = 0
        self.num_held += 1
        return block_id

    def hold(self, block_id: int) -> None:
        """Add a reference to a held or idle block."""
        if self.ref_counts[block_id] == 0:
            self.cache.revive(block_id)
            self.num_held += 1
            self.num_slots_written += self._num_written[block_id]
        self.ref_counts[block_id] += 1

    def release(self, block_id: int) -> None:
        """Drop a reference. A block without references is idle if it is cached, and free if not."""
        self.ref_counts[block_id] -= 1
        if self.ref_counts[block_id] > 0:
            return
        self.num_held -= 1
        self.num_slots_written -= self._num_written[block_id]
        source = self._copy_sources.pop(block_id, None)
        if source is not None:
            self.release(source)
        if block_id in self.cache:
            self._free += self.cache.park(block_id)
        else:
            self._free.append(block_id)

    def forget_cached(self) -> None:
        """Let no other text find what is cached now, its recurrent states included."""
        self._free += self.cache.clear()
        if self.recurrent is not None:
            self.recurrent.forget_cached()

    def is_shared(self, block_id: int) -> bool:
        """Whether more than one table holds the block. A pending copy does not count: it reads the
        block before any write."""
        num_references = self.ref_counts[block_id]
        if num_references > 1 and self._copy_sources:
            num_references -= list(self._copy_sources.values()).count(block_id)
        return num_references > 1

    def set_written(self, block_id: int, num_slots: int) -> None:
        """Set how many slots of a held block have a token now."""
        self.num_slots_written += num_slots - self._num_written[block_id]
        self._num_written[block_id] = num_slots

    def copy_on_write(self, block_id: int, num_slots: int) -> int:
        """Replace one reference to a shared block by a private copy of its first `num_slots`.

        The copy holds a reference to its source until `take_copies`, so that no block is both
        source and destination within a step, and the order of the copies does not matter.
        """
        copy_id = self.allocate()
        source = self._copy_sources.get(block_id, block_id)
        self.hold(source)
        self._copy_sources[copy_id] = source
        self.set_written(copy_id, num_slots)
        self.release(block_id)
        return copy_id

    def take_copies(self) -> list[tuple[int, int]]:
        """Return this step's copies as (source, destination), to be made before the next
        `allocate`."""
        copies = [(source, copy_id) for copy_id, source in self._copy_sources.items()]
        self._copy_sources.clear()
        for source, _ in copies:
            self.release(source)
        return copies

    def check_invariants(self, tables: Sequence["BlockTable"]) -> None:
        """Recount everything slowly from the tables that hold blocks, between two steps.

        Raises:
            InvariantViolation: a block is lost, owned twice, or miscounted.
        """
        self.cache.check_invariants()
        check(not self._copy_sources, "copies were ordered but not taken")
        owners = Counter(block_id for table in tables for block_id in table.block_ids)
        check(owners == Counter(dict(enumerate(self.ref_counts))), "reference counts are wrong")
        check(self.num_held == len(owners), f"{self.num_held} held, counted {len(owners)}")
        states = [*self._free, *self.cache.idle, *owners]
        check(
            sorted(states) == list(range(self._num_touched)),
            "free, idle and held blocks are not all touched blocks, each once",
        )
        written = dict.fromkeys(owners, 0)
        for table in tables:
            for index, block_id in enumerate(table.block_ids, table.num_passed):
                slots = table.num_tokens - index * self.block_size
                slots = self.block_size if block_id in self.cache else min(slots, self.block_size)
                written[block_id] = max(written[block_id], slots)
        check(sum(written.values()) == self.num_slots_written, "written slots are miscounted")
        in_cache = [b for b in self._free if b in self.cache]
        check(not in_cache, f"free blocks {in_cache} are in the prefix cache")


class BlockTable:
    """One sequence's blocks of one layer group, in the order of its tokens.

    The first `num_tokens` slots hold the sequence's keys and values, except for the first
    `num_passed` blocks, which a window has passed. Shared or cached blocks are full, or `reserve`
    replaces them before they are written.
    """

    __slots__ = ("_pool", "block_ids", "num_passed", "num_tokens", "window")

    def __init__(self, pool: BlockPool, window: int | None = None) -> None:
        self._pool = pool
        self.window = window
        self.block_ids: list[int] = []
        """The blocks from number `num_passed` of the text on."""
        self.num_passed = 0
        self.num_tokens = 0

    def adopt(self, block_ids: Sequence[int], num_tokens: int, num_passed: int = 0) -> Self:
        """Fill this empty table with shared blocks for the first `num_tokens` slots, from block
        number `num_passed` on."""
        for block_id in block_ids:
            self._pool.hold(block_id)
        self.block_ids = list(block_ids)
        self.num_passed = num_passed
        self.truncate(num_tokens)
        return self

    def fork(self, num_tokens: int) -> "BlockTable":
        """Make a second table that shares this one's first `num_tokens` tokens."""
        shared = self.block_ids[: self._pool.blocks_for(num_tokens) - self.num_passed]
        return BlockTable(self._pool, self.window).adopt(shared, num_tokens, self.num_passed)

    def can_fork(self, num_tokens: int) -> bool:
        """Whether the blocks that the token after these attends to are still there."""
        return self.num_passed <= self._pool.layout.num_unseen(self.window, num_tokens)

    def truncate(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens and give back the blocks behind them."""
        num_blocks = max(0, self._pool.blocks_for(num_tokens) - self.num_passed)
        # The deepest block is released first, so that it is evicted before those that it depends
        # on.
        while len(self.block_ids) > num_blocks:
            self._pool.release(self.block_ids.pop())
        if num_tokens == 0:
            self.num_passed = 0
        self.num_tokens = num_tokens
        tail = num_tokens % self._pool.block_size
        if tail and not self._is_frozen(self.block_ids[-1]):
            self._pool.set_written(self.block_ids[-1], tail)

    def clear(self) -> None:
        self.truncate(0)

    def leave(self, num_tokens: int) -> None:
        """Give back the blocks that the window has passed once the first `num_tokens` tokens of the
        table are computed."""
        num_passed = self._pool.layout.num_passed(self.window, num_tokens)
        num_left = num_passed - self.num_passed
        if num_left > 0:
            for block_id in self.block_ids[:num_left]:
                self._pool.release(block_id)
            del self.block_ids[:num_left]
            self.num_passed = num_passed

    def blocks_to_reach(self, num_tokens: int) -> int:
        """The number of free blocks that `reserve(num_tokens)` takes, a copy included."""
        missing = self._pool.blocks_for(num_tokens) - self.num_passed - len(self.block_ids)
        return max(missing, 0) + self.num_copies

    def blocks_lacking(self, num_tokens: int) -> int:
        """The most free blocks, without copies, that the table takes at a time while it grows to
        `num_tokens` tokens in steps within `KvLayout.max_in_flight`."""
        missing = self._pool.blocks_for(num_tokens) - self.num_passed
        if self.window is not None:
            missing = min(missing, self._pool.layout.most_in_window(self.window))
        return max(0, missing - len(self.block_ids))

    @property
    def num_copies(self) -> int:
        """The number of blocks that must be copied before anything is written."""
        index, tail = divmod(self.num_tokens, self._pool.block_size)
        return 1 if tail and self._pool.is_shared(self.block_ids[index - self.num_passed]) else 0

    def reserve(self, num_tokens: int) -> bool:
        """Make the slots from `self.num_tokens` up to `num_tokens` writable by this table alone.

        Returns:
            False, with nothing changed, if too few blocks are free.
        """
        pool = self._pool
        index, tail = divmod(self.num_tokens, pool.block_size)
        index -= self.num_passed
        num_blocks = len(self.block_ids) + self.num_passed
        if num_tokens <= num_blocks * pool.block_size and not (
            tail and self._is_frozen(self.block_ids[index])
        ):
            return True
        if self.blocks_to_reach(num_tokens) > pool.num_free:
            return False
        if tail:
            self._unfreeze(index, tail)
        for _ in range(pool.blocks_for(num_tokens) - num_blocks):
            self.block_ids.append(pool.allocate())
        return True

    def advance(self, num_tokens: int) -> None:
        """Note that the slots before `num_tokens` are computed now, or will be by a launched
        step."""
        pool, size = self._pool, self._pool.block_size
        first = self.num_tokens // size
        for index in range(first, pool.blocks_for(num_tokens)):
            block_id = self.block_ids[index - self.num_passed]
            pool.set_written(block_id, min(size, num_tokens - index * size))
        self.num_tokens = num_tokens

    def _is_frozen(self, block_id: int) -> bool:
        return self._pool.is_shared(block_id) or block_id in self._pool.cache

    def _unfreeze(self, index: int, tail: int) -> None:
        """Copy a shared block, or take an unshared one out of the cache."""
        block_id = self.block_ids[index]
        if self._pool.is_shared(block_id):
            self.block_ids[index] = self._pool.copy_on_write(block_id, tail)
        else:
            self._pool.cache.forget(block_id)
            self._pool.set_written(block_id, tail)


def check(holds: bool, message: str) -> None:
    """Raise an error unless an invariant holds.

    Raises:
        InvariantViolation: the invariant does not hold.
    """
    if not holds:
        raise InvariantViolation(message)
