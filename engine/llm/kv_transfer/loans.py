"""Which blocks are kept for other workers, and for how long."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from engine.contract.generate import KvLoan
from engine.llm.cache.kv_cache import BlockPool, BlockTable
from engine.llm.cache.sequence_blocks import SequenceBlocks, find_cached
from engine.llm.kv_store.block_source import BlockMemory, Entry
from engine.llm.kv_transfer.channel import Address
from engine.llm.request import Sequence

_OFTEN_S = 0.1
"""How soon blocks that were fetched are free again in an idle engine."""


@dataclass(slots=True)
class _Loan:
    table: SequenceBlocks
    blocks: dict[Entry, int]
    until_s: float

    @property
    def num_blocks(self) -> int:
        return self.table.num_blocks


class Loans:
    """Prompts whose blocks are held by tables of their own, each for one borrower.

    A loan is not guaranteed: it ends when its blocks were fetched or are not wanted, after some
    seconds, or when a running text needs the blocks. Loop thread only, unless said otherwise.

    Args:
        seconds: how long a loan lasts at most.
        most_blocks: the most blocks of all loans; one in two loans counts twice.
    """

    def __init__(
        self,
        memory: BlockMemory,
        address: Address,
        *,
        seconds: float,
        most_blocks: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_made = self.num_expired = self.num_withdrawn = self.num_refused = 0
        self._memory = memory
        self._address = address
        self._seconds = seconds
        self._most_blocks = most_blocks
        self._clock = clock
        self._lock = threading.Lock()
        self._loans: dict[bytes, _Loan] = {}
        """The oldest first."""
        self._ended: list[_Loan] = []
        """Loans whose blocks are still to be released."""

    @property
    def num_blocks(self) -> int:
        """The number of blocks that are kept."""
        return sum(loan.num_blocks for loan in self._all())

    def tables(self) -> list[BlockTable]:
        """The tables that hold the blocks."""
        return [table for loan in self._all() for table in loan.table.tables]

    def lend(self, pool: BlockPool, sequence: Sequence) -> KvLoan | None:
        """Keep the full blocks of a sequence's prompt, which it still holds. None if there are
        none that others can use, or no room for a further loan."""
        if sequence.owner.request.adapter is not None:
            return None  # its key stands for other weights elsewhere
        self.tend()
        prompt_len = sequence.owner.prompt_len
        chain = sequence.extend_chain(pool.block_size)[: prompt_len // pool.block_size]
        cached = find_cached(pool, chain, prompt_len - 1)
        num_blocks = sum(map(len, cached.block_ids))
        if not num_blocks:
            return None
        if self.num_blocks + num_blocks > self._most_blocks:
            self.num_refused += 1
            return None
        blocks = {
            (group, chain[index]): block_id
            for group, (ids, first) in enumerate(
                zip(cached.block_ids, cached.num_passed, strict=True)
            )
            for index, block_id in enumerate(ids, first)
        }
        table = SequenceBlocks(pool).adopt(cached)
        name = secrets.token_bytes(16)
        with self._lock:
            self._loans[name] = _Loan(table, blocks, self._clock() + self._seconds)
        self.num_made += 1
        return self._address.loan(name, cached.num_tokens, cached.block_ids)

    def tend(self) -> float | None:
        """Release the blocks of loans that are over. Returns how long until the next time; None if
        there are no loans."""
        now_s = self._clock()
        with self._lock:
            expired = [name for name, loan in self._loans.items() if loan.until_s <= now_s]
            self._ended += [self._loans.pop(name) for name in expired]
            ended, self._ended = self._ended, []
            left_s = [loan.until_s - now_s for loan in self._loans.values()]
        self.num_expired += len(expired)
        for loan in ended:
            loan.table.clear()
        return min([*left_s, _OFTEN_S]) if left_s else None

    def withdraw(self) -> bool:
        """End the oldest loan, because a text needs its blocks. Returns whether there was one."""
        with self._lock:
            name = next(iter(self._loans), None)
            if name is not None:
                self._ended.append(self._loans.pop(name))
                self.num_withdrawn += 1
            is_any = bool(self._ended)
        self.tend()
        return is_any

    def forget_all(self) -> None:
        """Forget the loans of a pool that is not used any more."""
        with self._lock:
            self.num_withdrawn += len(self._loans)
            self._loans.clear()
            self._ended.clear()

    def num_blocks_of(self, name: bytes) -> int | None:
        """The number of a loan's blocks; None if it is over. Any thread."""
        with self._lock:
            loan = self._loans.get(name)
            return None if loan is None else len(loan.blocks)

    def has(self, name: bytes, entry: Entry) -> bool:
        """Whether a block belongs to a loan. Any thread."""
        with self._lock:
            loan = self._loans.get(name)
            return loan is not None and entry in loan.blocks

    def copy_out(self, name: bytes, entry: Entry) -> memoryview | None:
        """Copy a block of a loan; None if the loan is over. Any thread: as the blocks are released
        under the lock, nobody writes to one meanwhile."""
        with self._lock:
            loan = self._loans.get(name)
            return None if loan is None else self._memory.copy_out(loan.blocks[entry])

    def end(self, name: bytes) -> None:
        """Note that a loan's blocks are not wanted any more. Any thread."""
        with self._lock:
            loan = self._loans.pop(name, None)
            if loan is not None:
                self._ended.append(loan)

    def _all(self) -> list[_Loan]:
        with self._lock:
            return [*self._loans.values(), *self._ended]
