"""Keeps track of who holds which slot for recurrent states (`kernels.shared.recurrent_batch`).

A sequence has one state, which each step replaces. Where a step ends with a block, the state is
kept for other texts with the same beginning, and the next step writes to another slot:

    tokens    [ 0 … 15 | 16 17 … 31 | 32 33 ]        block_size 16
    slots            7           3      9            7 and 3 are in the prefix cache, 9 changes

A state cannot forget tokens that it has read. A step that computes drafts therefore keeps the slot
that it read: if a draft turns out wrong, the text continues from there, and its right tokens are
run again.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from engine.llm.cache.kv_cache import BlockPool, check
from engine.llm.cache.prefix_cache import PrefixCache
from engine.llm.decision import RecurrentSlots


class RecurrentPool:
    """A fixed number of slots, with those that are kept for other texts.

    Args:
        num_slots: at least two for each sequence that may run: the one that a step reads and the
            one that it writes.
        block_size: the number of tokens of a KV block.
        is_cached: whether states are kept for other texts.
    """

    def __init__(self, num_slots: int, block_size: int, *, is_cached: bool) -> None:
        self.block_size = block_size
        self.is_cached = is_cached
        self._slots = BlockPool(num_slots, 1, PrefixCache(num_slots))
        self._read: list[int] = []
        """Held slots that the step in the making reads and nobody needs afterwards."""

    def take(self) -> int:
        """Take a slot that nobody holds."""
        return self._slots.allocate()

    def hold(self, slot: int) -> None:
        """Add a reference to a slot."""
        self._slots.hold(slot)

    def release(self, slot: int) -> None:
        """Drop a reference to a slot."""
        self._slots.release(slot)

    def release_read(self, slot: int) -> None:
        """Drop a reference once the step in the making is decided: none of its sequences may write
        what another one reads."""
        self._read.append(slot)

    def end_decision(self) -> None:
        """Note that a step is decided."""
        for slot in self._read:
            self.release(slot)
        self._read.clear()

    def is_frozen(self, slot: int) -> bool:
        """Whether a slot must not be written, because others may read it."""
        return self._slots.is_shared(slot) or slot in self._slots.cache

    def find(self, chain: Sequence[bytes], num_blocks: int) -> tuple[int, int | None]:
        """Find the longest beginning of a text, of at most `num_blocks` blocks, with a kept state.

        Returns:
            Its number of blocks and the slot; 0 and None if there is none.
        """
        for length in range(num_blocks, 0, -1):
            if found := self._slots.cache.find(chain[length - 1 : length]):
                return length, found[0]
        return 0, None

    def offer(self, slot: int, block_hash: bytes) -> None:
        """Let other texts find the state after the block of that hash."""
        self._slots.cache.register(slot, block_hash)

    def forget_cached(self) -> None:
        """Let no other text find what is kept now."""
        self._slots.forget_cached()

    def check_invariants(self, states: Iterable["RecurrentState"]) -> None:
        """Recount slowly, between two steps.

        Raises:
            InvariantViolation: a slot is lost or has a wrong owner.
        """
        self._slots.cache.check_invariants()
        check(not self._read, "a step was made, but not decided")
        owners = Counter(slot for state in states for slot in state.held)
        counts = Counter(dict(enumerate(self._slots.ref_counts)))
        check(owners == counts, "recurrent states have false owners")


class _Before(NamedTuple):
    """The state before a step that computes drafts."""

    num_tokens: int
    slot: int | None


class RecurrentState:
    """One sequence's state."""

    __slots__ = ("_before", "_kept", "_pool", "_slot")

    def __init__(self, pool: RecurrentPool) -> None:
        self._pool = pool
        self._slot: int | None = None
        """Where the state is; None without computed tokens."""
        self._kept: dict[int, int] = {}
        """Slots to offer to other texts, by the number of tokens, once these are certain."""
        self._before: _Before | None = None
        """What to go back to, if the last step computed drafts."""

    @property
    def held(self) -> list[int]:
        """The slots that it holds, each as often as it does."""
        before = None if self._before is None else self._before.slot
        return [*self._kept.values(), *(slot for slot in (self._slot, before) if slot is not None)]

    def adopt(self, slot: int | None) -> None:
        """Start from a kept state."""
        self._slot = slot
        if slot is not None:
            self._pool.hold(slot)

    def fork(self) -> "RecurrentState":
        """Make a second state that starts from this one."""
        forked = RecurrentState(self._pool)
        forked.adopt(self._slot)
        return forked

    def step(self, start: int, end: int, *, has_drafts: bool = False) -> RecurrentSlots:
        """Return the slots for a step that computes the tokens `start .. end` of the text."""
        self._forget_before()
        pool, read = self._pool, self._slot
        if read is None or has_drafts or pool.is_frozen(read):
            self._slot = pool.take()
            if has_drafts:
                self._before = _Before(start, read)
            elif read is not None:
                pool.release_read(read)
        assert self._slot is not None
        if pool.is_cached and end % pool.block_size == 0:
            pool.hold(self._slot)
            self._kept[end] = self._slot
        return RecurrentSlots(read, self._slot)

    def rewind(self) -> int:
        """Go back to before the last step, which computed drafts. Returns the number of tokens that
        are left."""
        assert self._before is not None and self._slot is not None
        num_tokens, slot = self._before
        for end in [end for end in self._kept if end > num_tokens]:
            self._pool.release(self._kept.pop(end))
        self._pool.release(self._slot)
        self._slot, self._before = slot, None
        return num_tokens

    def room_after(self, num_tokens: int) -> int | None:
        """The most tokens that may follow `num_tokens` in a step, so that none passes the end of a
        block whose state is to be kept; None if any number may."""
        return -num_tokens % self._pool.block_size if self._pool.is_cached else None

    def note_computed(self, num_tokens: int, chain: Sequence[bytes]) -> None:
        """Offer states to other texts: the first `num_tokens` tokens are certain.

        Args:
            chain: hashes of the text's full blocks.
        """
        for end in [end for end in self._kept if end <= num_tokens]:
            slot = self._kept.pop(end)
            self._pool.offer(slot, chain[end // self._pool.block_size - 1])
            self._pool.release(slot)

    def clear(self) -> None:
        """Give everything back."""
        for slot in self.held:
            self._pool.release(slot)
        self._kept.clear()
        self._slot = self._before = None

    def _forget_before(self) -> None:
        """Give up the state to go back to, since every token is certain."""
        before, self._before = self._before, None
        if before is not None and before.slot is not None:
            self._pool.release(before.slot)
