"""Where blocks may be read from that are not in memory: the interface of `Restoring` to a disk and
to other workers."""

import hashlib
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from engine.contract.generate import GenerateRequest

Entry = tuple[int, bytes]
"""A block by layer group and hash, as in `PrefixCache`."""
Look = Callable[[Callable[[Entry], bool]], list[Entry]]
"""Chooses blocks to read, given whether each of them may be there."""


class BlockMemory(Protocol):
    """The memory of KV blocks, as `engine.llm.runner.kv_storage.KvStorage`."""

    @property
    def block_bytes(self) -> int:
        """The bytes of a block."""
        ...

    def copy_out(self, block_id: int) -> memoryview:
        """Copy the contents of a block that no step writes to."""
        ...

    def copy_in(self, block_id: int, contents: memoryview) -> None:
        """Set the contents of a block, after all launched steps."""
        ...


class BlockSource(Protocol):
    """Blocks of one model. Loop thread only, unless said otherwise."""

    memory: BlockMemory
    reader: ThreadPoolExecutor
    num_read: int
    """The number of blocks that were read and were new to the prefix cache."""

    @property
    def most_reads(self) -> int:
        """The most requests to read for at a time."""
        ...

    def may_have(self, request: GenerateRequest) -> bool:
        """Whether it makes sense to look for blocks of a prompt."""
        ...

    def ask(self, request: GenerateRequest, look: Look) -> "Future[list[Entry]]":
        """Have a thread choose the blocks to read."""
        ...

    def read(
        self, request: GenerateRequest, entries: Sequence[Entry]
    ) -> Generator[tuple[Entry, memoryview]]:
        """Read blocks, up to the first that is not there. In the reader's threads; waits."""
        ...

    def let_go(self, request: GenerateRequest) -> None:
        """Note that a prompt's blocks are not wanted, or not any more."""
        ...

    def note_silence(self) -> None:
        """Note that a request has waited without getting its blocks."""
        ...


def identity(computed_by: object, weights: str) -> bytes:
    """The identity of everything that shapes the contents of blocks beside the text.

    Args:
        weights: the digest of the weights' files.
    """
    return hashlib.sha256(repr((computed_by, weights)).encode()).digest()
