"""A sequence's KV blocks in all layer groups (`engine.contract.kv_layout`), its recurrent state if
the model has one, and the cached ones that it can start from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

from engine.contract.kv_layout import KvLayout
from engine.llm.cache.cache_journal import CachedText
from engine.llm.cache.kv_cache import BlockPool, BlockTable
from engine.llm.cache.recurrent_slots import RecurrentState


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """Computed blocks that another sequence can start from."""

    num_tokens: int
    block_ids: list[list[int]]
    """The cached blocks of each layer group."""
    num_passed: list[int]
    """For each layer group, the number of the text's blocks before them."""
    slot: int | None = None
    """The slot of the recurrent state."""
    num_shared: int = 0
    """The number of tokens whose keys and values were cached, though perhaps no state."""


class SequenceBlocks:
    """One sequence's blocks: a table per layer group, all for the same tokens. And its recurrent
    state, which always has a slot."""

    __slots__ = ("_pool", "num_again", "num_shared", "num_tokens", "state", "tables")

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.tables = [BlockTable(pool, window) for window in pool.layout.windows]
        self.state = None if pool.recurrent is None else RecurrentState(pool.recurrent)
        self.num_tokens = 0
        """The number of tokens whose keys and values are there, or will be by a launched step."""
        self.num_shared = 0
        """The number of tokens with which another text began, as far as that is known."""
        self.num_again = 0
        """The number of tokens behind these that were computed before, and must be run again
        because the recurrent state was taken back."""

    @property
    def num_blocks(self) -> int:
        """The number of blocks held, shared ones included."""
        return sum(len(table.block_ids) for table in self.tables)

    def adopt(self, cached: CachedPrefix) -> Self:
        """Share the blocks of a cached prefix; there must be none yet."""
        for table, blocks, first in zip(
            self.tables, cached.block_ids, cached.num_passed, strict=True
        ):
            table.adopt(blocks, cached.num_tokens, first)
        if self.state is not None:
            self.state.adopt(cached.slot)
        self.num_tokens = cached.num_tokens
        self.num_shared = cached.num_shared
        return self

    def fork(self, num_tokens: int) -> "SequenceBlocks":
        """Make second tables that share the first `num_tokens` tokens."""
        forked = SequenceBlocks(self._pool)
        forked.tables = [table.fork(num_tokens) for table in self.tables]
        forked.state = None if self.state is None else self.state.fork()
        forked.num_tokens = num_tokens
        return forked

    def can_fork(self, num_tokens: int) -> bool:
        """Whether everything that the token after these attends to is still there."""
        if self.state is not None and num_tokens != self.num_tokens:
            return False
        return all(table.can_fork(num_tokens) for table in self.tables)

    def truncate(self, num_tokens: int) -> None:
        """Keep the first `num_tokens` tokens. If there is a recurrent state, and they end within
        the last step, keep what was there before it. No window may have passed what the next token
        attends to."""
        wanted = num_tokens
        if self.state is not None and num_tokens != self.num_tokens:
            num_tokens = self.state.rewind()
        self._keep(num_tokens)
        self.num_again = wanted - num_tokens

    def clear(self) -> None:
        if self.state is not None:
            self.state.clear()
        self._keep(0)
        self.num_again = 0

    def _keep(self, num_tokens: int) -> None:
        for table in self.tables:
            table.truncate(num_tokens)
        self.num_tokens = num_tokens

    def blocks_to_reach(self, num_tokens: int) -> int:
        """The most free blocks, copies included, that it takes at a time while it grows to
        `num_tokens` tokens in steps within `KvLayout.max_in_flight`."""
        return self.blocks_lacking(num_tokens) + sum(table.num_copies for table in self.tables)

    def blocks_lacking(self, num_tokens: int) -> int:
        """The same as `blocks_to_reach`, without copies."""
        return sum(table.blocks_lacking(num_tokens) for table in self.tables)

    def reserve(self, num_tokens: int) -> bool:
        """Make the slots from `self.num_tokens` up to `num_tokens` writable by this sequence alone.

        Returns:
            False, with nothing changed, if too few blocks are free.
        """
        tables = self.tables
        if len(tables) > 1:  # else the table checks it
            num_blocks = sum(table.blocks_to_reach(num_tokens) for table in tables)
            if num_blocks > self._pool.num_free:
                return False
        reserved = [table.reserve(num_tokens) for table in tables]
        return all(reserved)

    def advance(self, num_tokens: int) -> None:
        """Note that the slots before `num_tokens` are computed now, or will be by a launched
        step."""
        for table in self.tables:
            table.advance(num_tokens)
        self.num_again = max(0, self.num_again - (num_tokens - self.num_tokens))
        self.num_tokens = num_tokens

    def leave(self, num_tokens: int) -> None:
        """Give back blocks that no token after the first `num_tokens` attends to. Those tokens are
        computed, and no uncommitted step reads before them."""
        for table in self.tables:
            table.leave(num_tokens)


def offer_cached(
    pool: BlockPool,
    table: SequenceBlocks,
    chain: Sequence[bytes],
    filled: range,
    text: CachedText | None = None,
) -> None:
    """Let other sequences find blocks that are full of a text's tokens.

    Args:
        chain: the hashes of the text's full blocks.
        filled: the numbers of the blocks to offer.
        text: the text, if the cache has a journal.
    """
    journal = pool.cache.journal
    for group, blocks in enumerate(table.tables):
        for index in filled:
            block_id = blocks.block_ids[index - blocks.num_passed]
            is_new = pool.cache.register(block_id, chain[index], group)
            if is_new and journal is not None and text is not None:
                journal.store(text, index, group)


def find_cached(pool: BlockPool, chain: Sequence[bytes], most: int) -> CachedPrefix:
    """Find the longest beginning of a text whose blocks are cached as far back as its next token
    attends.

    Args:
        chain: hashes of the text's full blocks.
        most: the most tokens to find.
    """
    layout, cache, recurrent = pool.layout, pool.cache, pool.recurrent
    num_shared, slot = 0, None

    def with_state(num_blocks: int) -> int:
        nonlocal num_shared, slot
        if recurrent is not None:
            num_shared = max(num_shared, num_blocks * layout.block_size)
            num_blocks, slot = recurrent.find(chain, num_blocks)
        return num_blocks

    if recurrent is not None:
        chain = chain[: most // layout.block_size]
    num_blocks, firsts = find_reach(
        layout, chain, most, lambda entry: cache.has(entry[1], entry[0]), with_state
    )
    blocks = [cache.find(chain[first:num_blocks], group) for group, first in enumerate(firsts)]
    num_tokens = min(num_blocks * layout.block_size, most)
    return CachedPrefix(num_tokens, blocks, firsts, slot, num_shared)


def find_reach(
    layout: KvLayout,
    chain: Sequence[bytes],
    most: int,
    has: Callable[[tuple[int, bytes]], bool],
    with_state: Callable[[int], int] = lambda num_blocks: num_blocks,
) -> tuple[int, list[int]]:
    """Find how many of a text's first blocks it can start from.

    Args:
        most: the most tokens to find.
        has: whether there is a block, by layer group and hash.
        with_state: returns the most blocks up to a number at whose end it can start, because of its
            recurrent state.

    Returns:
        The number, and for each layer group the number of blocks at the beginning that it does not
        need.
    """
    num_blocks = len(chain)
    for group, window in enumerate(layout.windows):
        if window is None:
            lacking = (i for i in range(num_blocks) if not has((group, chain[i])))
            num_blocks = next(lacking, num_blocks)

    def first_seen(window: int | None) -> int:
        return layout.num_unseen(window, min(num_blocks * layout.block_size, most))

    before = -1
    while before != num_blocks:  # each group may shorten it, so all are asked again
        before = num_blocks
        for group, window in enumerate(layout.windows):
            index = num_blocks - 1
            while window is not None and index >= first_seen(window):
                if not has((group, chain[index])):
                    num_blocks = index
                index -= 1
        num_blocks = with_state(num_blocks)
    return num_blocks, [first_seen(window) for window in layout.windows]
