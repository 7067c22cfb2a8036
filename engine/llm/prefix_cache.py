"""Which computed blocks can serve another prompt with the same beginning.

Blocks are found by a chained hash: a block's hash covers its own token ids and the hash of the
block before it, so equal hashes mean equal text from the first token on. The chain starts from salt
and adapter. The hash is BLAKE2b with 256 bits: nobody can craft a prompt that meets another's.

The pool (`engine.llm.kv_cache`) says when a block loses its last owner or gets one again.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from engine.errors import InvariantViolation

_DIGEST_BYTES = 32


def chain_root(salt: str | None, adapter: str | None) -> bytes:
    """Parent of the first block: requests of another salt or adapter share nothing."""
    return _digest(repr((salt, adapter)).encode())


def extend_chain(
    chain: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int
) -> list[bytes]:
    """Append the hashes of those full blocks of `token_ids` that `chain` does not have yet."""
    parent = chain[-1] if chain else root
    for start in range(len(chain) * block_size, len(token_ids) - block_size + 1, block_size):
        packed = array("q", token_ids[start : start + block_size]).tobytes()
        parent = _digest(parent + packed)
        chain.append(parent)
    return chain


class PrefixCache:
    """Index from block hash to block, and the idle blocks from the longest unused to the latest.

    A cached block is held by sequences or idle; its contents are complete and never change while
    the index has it. Of two blocks with the same contents, the first one is indexed. Layer groups
    have blocks of their own: what is found is one group's.
    """

    def __init__(self, max_idle: int) -> None:
        self._max_idle = max_idle
        self._block_of: dict[tuple[int, bytes], int] = {}
        """By layer group and hash."""
        self._key_of: dict[int, tuple[int, bytes]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._key_of

    @property
    def idle(self) -> Iterable[int]:
        """Cached blocks that nobody holds, the next to be evicted first."""
        return self._idle.keys()

    def find(self, chain: Sequence[bytes], group: int = 0) -> list[int]:
        """Blocks of the longest prefix of which all are cached."""
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

    def register(self, block_id: int, block_hash: bytes, group: int = 0) -> None:
        """Offer a block whose slots are all computed; a no-op if its text is indexed already."""
        key = group, block_hash
        if self._block_of.setdefault(key, block_id) == block_id:
            self._key_of[block_id] = key

    def forget(self, block_id: int) -> None:
        """Take a held block out of the index, if it is there: it is about to be written."""
        key = self._key_of.pop(block_id, None)
        if key is not None:
            del self._block_of[key]

    def park(self, block_id: int) -> list[int]:
        """A cached block has lost its last owner.

        Returns:
            Blocks that had to go because more are idle than allowed; they are free now.
        """
        self._idle[block_id] = None
        return [self.evict() for _ in range(len(self._idle) - self._max_idle)]

    def revive(self, block_id: int) -> None:
        """An idle block has an owner again."""
        del self._idle[block_id]

    def evict(self) -> int:
        """Drop the block that has been idle for longest.

        Raises:
            InvariantViolation: no block is idle.
        """
        if not self._idle:
            raise InvariantViolation("asked to evict a cached block, but none is idle")
        block_id, _ = self._idle.popitem(last=False)
        self.forget(block_id)
        return block_id

    def check_invariants(self) -> None:
        """
        Raises:
            InvariantViolation: index and reverse index disagree, or too many blocks are idle.
        """
        if {b: key for key, b in self._block_of.items()} != self._key_of:
            raise InvariantViolation("the prefix cache's two indexes disagree")
        if not self._idle.keys() <= self._key_of.keys():
            raise InvariantViolation("an idle block is not in the prefix cache's index")
        if len(self._idle) > self._max_idle:
            raise InvariantViolation(f"{len(self._idle)} blocks are idle, {self._max_idle} may be")


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
