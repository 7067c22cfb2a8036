"""Finds computed blocks that can serve another prompt with the same beginning.

Blocks are found by a chained hash: a block's hash covers its own token ids, the contents of its
rows that are states, and the hash of the block before it, so equal hashes mean equal text from the
first token on. The chain starts from salt and adapter. The hash is BLAKE2b with 256 bits, so nobody
can craft a prompt whose hash equals another's.

The pool (`engine.llm.cache.kv_cache`) says when a block loses its last owner or gets one again.
"""

import hashlib
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from engine.contract.prompt_states import StatePart
from engine.errors import InvariantViolation
from engine.llm.cache.cache_journal import CacheJournal

_DIGEST_BYTES = 32


def chain_root(salt: str | None, adapter: str | None) -> bytes:
    """The parent of a text's first block. Requests with different salts or adapters share
    nothing."""
    return _digest(repr((salt, adapter)).encode())


def extend_chain(
    chain: list[bytes],
    root: bytes,
    token_ids: Sequence[int],
    block_size: int,
    states: Sequence[StatePart] = (),
) -> list[bytes]:
    """Append the hashes of those full blocks of `token_ids` that `chain` does not have yet.

    Args:
        states: the parts of the text that are states.
    """
    parent = chain[-1] if chain else root
    for start in range(len(chain) * block_size, len(token_ids) - block_size + 1, block_size):
        end = start + block_size
        packed = array("q", token_ids[start:end]).tobytes()
        for part in states:
            if part.start < end and part.end > start:
                packed += array("q", (part.start - start, part.length)).tobytes() + part.digest
        parent = _digest(parent + packed)
        chain.append(parent)
    return chain


class PrefixCache:
    """An index from block hash to block, and the idle blocks from the longest unused to the latest.

    A cached block is held by sequences or idle. Its contents are complete and do not change while
    it is indexed. Of two blocks with the same contents, the first is indexed. Each layer group has
    its own blocks, so a search is for one group.

    A client may pin blocks for some time. Pinned blocks are evicted only when no others are idle,
    and make up at most half of those that may be idle, a client's at most a quarter.

    Args:
        clock: `time.monotonic`, or a test's own; only pins depend on it.
        journal: is told here what leaves the index; what enters it is told by code that knows the
            block's text.
    """

    def __init__(
        self,
        max_idle: int,
        clock: Callable[[], float] = time.monotonic,
        journal: CacheJournal | None = None,
    ) -> None:
        self.journal = journal
        self._max_idle = max_idle
        self._clock = clock
        self._pins: dict[int, tuple[float, str]] = {}
        """Until when a block is pinned, and by whom."""
        self._block_of: dict[tuple[int, bytes], int] = {}
        """The block by layer group and hash."""
        self._key_of: dict[int, tuple[int, bytes]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._disowned: set[int] = set()
        """Held blocks that `clear` took out of the index. They stay cached, since their owners
        must not write to them."""

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._key_of or block_id in self._disowned

    @property
    def idle(self) -> Iterable[int]:
        """The cached blocks that nobody holds, the next to be evicted first."""
        return self._idle.keys()

    def find(self, chain: Sequence[bytes], group: int = 0) -> list[int]:
        """Find the blocks of the longest prefix that is cached without a gap."""
        blocks = []
        for block_hash in chain:
            block_id = self._block_of.get((group, block_hash))
            if block_id is None:
                break
            blocks.append(block_id)
        return blocks

    def has(self, block_hash: bytes, group: int = 0) -> bool:
        """Whether a block is cached, whatever comes before it."""
        return (group, block_hash) in self._block_of

    def register(self, block_id: int, block_hash: bytes, group: int = 0) -> bool:
        """Offer a block whose slots are all computed. Returns False, with nothing changed, if its
        text is indexed already."""
        key = group, block_hash
        if key in self._block_of:
            return False
        self._block_of[key] = block_id
        self._key_of[block_id] = key
        self._disowned.discard(block_id)
        return True

    def forget(self, block_id: int) -> None:
        """Take a held block out of the index, if it is there, because it is about to be written."""
        self._disowned.discard(block_id)
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._block_of[key]
            self._pins.pop(block_id, None)
            if self.journal is not None:
                self.journal.remove(*key)

    def clear(self) -> list[int]:
        """Let no text find what is cached now.

        Returns:
            The blocks that nobody holds; they are free now.
        """
        freed = list(self._idle)
        self._disowned |= self._key_of.keys() - self._idle.keys()
        for index in (self._block_of, self._key_of, self._pins, self._idle):
            index.clear()
        if self.journal is not None:
            self.journal.clear()
        return freed

    def pin(self, hashes: Iterable[bytes], num_groups: int, client: str, seconds: float) -> None:
        """Pin the blocks of a text that are cached, as many as the client may."""
        until_s = self._clock() + seconds
        self._pins = {b: pin for b, pin in self._pins.items() if pin[0] > self._clock()}
        num_own = sum(owner == client for _, owner in self._pins.values())
        for key in ((group, one) for one in hashes for group in range(num_groups)):
            block_id = self._block_of.get(key)
            if block_id is None:
                continue
            if block_id in self._pins:
                pinned_until_s, owner = self._pins[block_id]
                self._pins[block_id] = max(until_s, pinned_until_s), owner
            elif num_own < self._max_idle // 4 and len(self._pins) < self._max_idle // 2:
                self._pins[block_id] = until_s, client
                num_own += 1

    def pinned_s(self, block_id: int) -> float:
        """For how long a block is still pinned; 0 if it is not."""
        return max(0.0, self._pins.get(block_id, (0.0, ""))[0] - self._clock())

    def park(self, block_id: int) -> list[int]:
        """Make a cached block idle: it has lost its last owner.

        Returns:
            Blocks that are free now: those that were evicted because too many are idle, or the
            block itself if no text can find it any more.
        """
        if block_id in self._disowned:
            self.forget(block_id)
            return [block_id]
        self._idle[block_id] = None
        return [self.evict() for _ in range(len(self._idle) - self._max_idle)]

    def revive(self, block_id: int) -> None:
        """Note that an idle block has an owner again."""
        del self._idle[block_id]

    def evict(self) -> int:
        """Drop the block that has been idle for longest and is not pinned, or the longest pinned
        one if all are.

        Raises:
            InvariantViolation: no block is idle.
        """
        if not self._idle:
            raise InvariantViolation("asked to evict a cached block, but none is idle")
        for _ in range(len(self._idle)):
            block_id, _ = self._idle.popitem(last=False)
            if not self.pinned_s(block_id):
                break
            self._idle[block_id] = None
        else:
            block_id, _ = self._idle.popitem(last=False)
        self.forget(block_id)
        return block_id

    def check_invariants(self) -> None:
        """Check that the two indexes agree and not too many blocks are idle.

        Raises:
            InvariantViolation: index and reverse index disagree, or too many blocks are idle.
        """
        if {b: key for key, b in self._block_of.items()} != self._key_of:
            raise InvariantViolation("the prefix cache's two indexes disagree")
        if not self._idle.keys() <= self._key_of.keys():
            raise InvariantViolation("an idle block is not in the prefix cache's index")
        if self._disowned & self._key_of.keys():
            raise InvariantViolation(
                "a block was taken out of the prefix cache and is in its index"
            )
        if not self._pins.keys() <= self._key_of.keys():
            raise InvariantViolation("a pinned block is not in the prefix cache's index")
        if len(self._idle) > self._max_idle:
            raise InvariantViolation(f"{len(self._idle)} blocks are idle, {self._max_idle} may be")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
