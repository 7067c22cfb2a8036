"""Records what a prefix cache adds and drops, in order, for routers that choose workers by it.

The records are plain data. They are taken between two steps, for example by
`engine.worker.kv_events`. Applied to an empty set, all of them together give the blocks that the
cache has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from engine.contract.generate import GenerateRequest
from engine.contract.prompt_states import StatePart

ExtraKey = str | tuple[str, int]
"""What a hash covers beside tokens: an adapter's name, a salt, or the digest of a part of the text
that is states and the number of the block's rows before it, which is negative if it began in an
earlier block."""


class CachedText(NamedTuple):
    """A text whose blocks are cached."""

    token_ids: Sequence[int]
    chain: Sequence[bytes]
    """The hashes of its full blocks."""
    states: Sequence[StatePart]
    salt: str | None
    adapter: str | None
    """The name of its adapter."""

    @classmethod
    def of(
        cls, request: GenerateRequest, token_ids: Sequence[int], chain: Sequence[bytes]
    ) -> "CachedText":
        """A request's prompt, or that with an output."""
        # The key of an adapter begins with its name (`engine.lora.loaded_adapters`).
        adapter = request.adapter and request.adapter.partition("\0")[0]
        return cls(token_ids, chain, request.states, request.cache_salt, adapter)

    def keys(self, index: int, block_size: int) -> tuple[ExtraKey, ...]:
        """What the hash of a block covers beside tokens."""
        start, end = index * block_size, (index + 1) * block_size
        keys: list[ExtraKey] = [] if self.adapter is None else [self.adapter]
        keys += [
            (part.digest.hex(), part.start - start)
            for part in self.states
            if part.start < end and part.end > start
        ]
        if index == 0 and self.salt is not None:
            keys.append(self.salt)
        return tuple(keys)


@dataclass(slots=True)
class StoredBlocks:
    """Consecutive blocks of a text that are cached now."""

    group: int
    """The layer group."""
    hashes: list[bytes]
    parent: bytes | None
    """The hash of the block before them; None at the beginning of a text."""
    token_ids: list[int]
    keys: list[tuple[ExtraKey, ...]]
    """Those of each block."""
    adapter: str | None


@dataclass(slots=True)
class RemovedBlocks:
    """Blocks that are not cached any more."""

    group: int
    hashes: list[bytes]


@dataclass(slots=True)
class ClearedBlocks:
    """Nothing is cached any more."""


CacheRecord = StoredBlocks | RemovedBlocks | ClearedBlocks


class CacheJournal:
    """The records since they were taken last.

    Args:
        windows: how far each layer group looks back (`engine.contract.kv_layout`).

    Attributes:
        num_dropped: how many times records that were taken did not arrive in time. The code that
            takes them counts.
    """

    def __init__(self, block_size: int, windows: Sequence[int | None]) -> None:
        self.block_size = block_size
        self.windows = windows
        self.num_dropped = 0
        self._records: list[CacheRecord] = []

    def store(self, text: CachedText, index: int, group: int) -> None:
        """Note that a block of a text is cached now."""
        size = self.block_size
        block_hash, parent = text.chain[index], text.chain[index - 1] if index else None
        token_ids = text.token_ids[index * size : (index + 1) * size]
        keys = text.keys(index, size)
        last = self._records[-1] if self._records else None
        if isinstance(last, StoredBlocks) and (last.group, last.hashes[-1]) == (group, parent):
            last.hashes.append(block_hash)
            last.token_ids += token_ids
            last.keys.append(keys)
            return
        record = StoredBlocks(group, [block_hash], parent, [*token_ids], [keys], text.adapter)
        self._records.append(record)

    def remove(self, group: int, block_hash: bytes) -> None:
        """Note that a block is not cached any more."""
        last = self._records[-1] if self._records else None
        if isinstance(last, RemovedBlocks) and last.group == group:
            last.hashes.append(block_hash)
        else:
            self._records.append(RemovedBlocks(group, [block_hash]))

    def clear(self) -> None:
        """Note that nothing is cached any more."""
        self._records = [ClearedBlocks()]

    def take(self) -> list[CacheRecord]:
        """Remove and return the records."""
        taken, self._records = self._records, []
        return taken
