"""What the router believes a replica's prefix cache to hold.

It mirrors `engine.llm.cache.prefix_cache`: blocks of running requests are held, and the others are
idle, in the order of their release; the oldest idle ones are evicted first. The worker is not
asked. Answers say how much was really found, and a block that is missing tells about all older
ones.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Hold:
    """A running request's blocks."""

    chain: Sequence[bytes]
    num_known: int
    """The number of its first blocks that were known before."""
    stamps: list[int] = field(default_factory=list)
    """For each of these, when it became idle; 0 for one that another request held."""


class PrefixMap:
    """The blocks of one replica, by their chained hashes.

    Args:
        max_idle: the most blocks that are kept while no request holds them.
    """

    def __init__(self, max_idle: int) -> None:
        self._max_idle = max_idle
        self._held: Counter[bytes] = Counter()
        self._idle: OrderedDict[bytes, int] = OrderedDict()
        self._now = 0

    def __len__(self) -> int:
        return len(self._held) + len(self._idle)

    def match(self, chain: Sequence[bytes]) -> int:
        """Return how many of a text's first blocks are there."""
        for place, block in enumerate(chain):
            if block not in self._held and block not in self._idle:
                return place
        return len(chain)

    def hold(self, chain: Sequence[bytes]) -> Hold:
        """Note that a request will compute these blocks, or use them."""
        found = Hold(chain, self.match(chain))
        for place, block in enumerate(chain):
            stamp = self._idle.pop(block, 0)
            if place < found.num_known:
                found.stamps.append(stamp)
            self._held[block] += 1
        return found

    def correct(self, hold: Hold, num_found: int) -> None:
        """Note how many of a request's blocks the worker has found. It evicts the longest idle
        block first, so where one is missing, all that became idle before it are gone, too."""
        missing = max(hold.stamps[num_found:], default=0)
        while self._idle and next(iter(self._idle.values())) <= missing:
            self._idle.popitem(last=False)

    def release(self, hold: Hold, *, is_computed: bool) -> None:
        """Note that a request has ended.

        Args:
            is_computed: whether all of its blocks were computed.
        """
        self._now += 1
        # The deepest block becomes idle first, so that it is evicted before those it depends on.
        for place in reversed(range(len(hold.chain))):
            block = hold.chain[place]
            self._held[block] -= 1
            if not self._held[block]:
                del self._held[block]
                if is_computed or place < hold.num_known:
                    self._idle[block] = self._now
        while len(self._idle) > self._max_idle:
            self._idle.popitem(last=False)

    def forget(self) -> None:
        """Note that the worker has lost its cache. Blocks of running requests stay until these
        have ended."""
        self._idle.clear()
