"""Keeps what a draft model has read of each text, in block tables with a pool of their own."""

from collections.abc import Container
from dataclasses import dataclass, field

from engine.contract.resolved_config import ResolvedConfig
from engine.llm.cache.kv_cache import BlockPool
from engine.llm.cache.prefix_cache import PrefixCache
from engine.llm.cache.sequence_blocks import SequenceBlocks, find_cached, offer_cached
from engine.llm.decision import GroupBlocks
from engine.llm.request import Sequence


@dataclass(slots=True)
class ReadText:
    """One sequence's keys and values.

    text      [ read ......... | guesses, then what really came ]
    table     [ computed ............ ]
    """

    table: SequenceBlocks
    num_read: int
    """The number of the text's tokens that were known when it was last read."""
    guesses: list[int] = field(default_factory=list)
    """The tokens that were expected to follow; the table has computed some of them."""

    def rewind(self, token_ids: list[int]) -> int:
        """Keep what was guessed right, except for the text's last token, whose logits are needed.
        Returns how many tokens must be computed, at least one."""
        num_right = 0
        for guess, token_id in zip(self.guesses, token_ids[self.num_read :], strict=False):
            if guess != token_id:
                break
            num_right += 1
        kept = min(self.table.num_tokens, self.num_read + num_right, len(token_ids) - 1)
        if kept < self.table.num_tokens:
            self.table.truncate(kept)
        self.num_read, self.guesses = kept, []
        return len(token_ids) - kept

    def blocks(self, num_blocks: int) -> list[GroupBlocks]:
        """The table's first blocks, for a step."""
        return [
            GroupBlocks(one.block_ids[: num_blocks - one.num_passed], one.num_passed)
            for one in self.table.tables
        ]


class DraftCache:
    """The unfinished texts that a draft model has read. Those that were not drafted for lately give
    way to others, and are read again if needed."""

    def __init__(self, config: ResolvedConfig, windows: tuple[int | None, ...]) -> None:
        self._config = config
        cache = PrefixCache(config.max_idle_cached_blocks)
        layout = config.kv_layout(windows)
        self._pool = BlockPool(config.num_kv_blocks, config.block_size, cache, layout)
        self._texts: dict[int, ReadText] = {}
        """Texts by sequence id, the longest unused first."""

    @property
    def num_blocks_used(self) -> int:
        return self._pool.num_held

    def open(self, sequence: Sequence) -> ReadText:
        """Return what has been read of a text, perhaps for another text with the same beginning."""
        text = self._texts.pop(sequence.seq_id, None) or self._started(sequence)
        self._texts[sequence.seq_id] = text
        return text

    def reserve(self, text: ReadText, num_tokens: int, kept: Container[int]) -> bool:
        """Make the slots up to `num_tokens` writable, if necessary by dropping other texts, but
        none of `kept`."""
        if num_tokens > self._pool.num_slots:
            return False
        while not text.table.reserve(num_tokens):
            victim = next((seq_id for seq_id in self._texts if seq_id not in kept), None)
            if victim is None:
                return False
            self.close(victim)
        return True

    def take_copies(self) -> list[tuple[int, int]]:
        """See `BlockPool.take_copies`."""
        return self._pool.take_copies()

    def note_computed(self, sequence: Sequence, start: int) -> None:
        """Note that more of a text was computed, from token `start` on. Its full blocks are offered
        to other texts, and blocks that the windows have passed are given back."""
        text = self._texts[sequence.seq_id]
        num_tokens = min(text.table.num_tokens, len(sequence.token_ids))
        filled = self._pool.filled_by(start, num_tokens)
        if filled and self._config.enable_prefix_caching:
            chain = sequence.extend_chain(self._pool.block_size)
            offer_cached(self._pool, text.table, chain, filled)
        if self._pool.layout.slides:
            text.table.leave(num_tokens)

    def close(self, seq_id: int) -> None:
        """Give back what a text holds; unknown ids are ignored."""
        text = self._texts.pop(seq_id, None)
        if text is not None:
            text.table.clear()

    def check_invariants(self) -> None:
        """Recount everything slowly, between two steps.

        Raises:
            InvariantViolation: a block is lost, owned twice, or miscounted.
        """
        tables = [table for text in self._texts.values() for table in text.table.tables]
        self._pool.check_invariants(tables)

    def _started(self, sequence: Sequence) -> ReadText:
        chain: list[bytes] = []
        if self._config.enable_prefix_caching:
            chain = sequence.extend_chain(self._pool.block_size)
        cached = find_cached(self._pool, chain, len(sequence.token_ids) - 1)
        return ReadText(SequenceBlocks(self._pool).adopt(cached), cached.num_tokens)
