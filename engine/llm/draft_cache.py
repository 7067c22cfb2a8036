"""What a draft model has read of each text: block tables in a pool of its own."""

from collections.abc import Container
from dataclasses import dataclass, field

from engine.config import ResolvedConfig
from engine.llm.decision import GroupBlocks
from engine.llm.kv_cache import BlockPool
from engine.llm.prefix_cache import PrefixCache
from engine.llm.request import Sequence
from engine.llm.sequence_blocks import SequenceBlocks, find_cached, offer_cached


@dataclass(slots=True)
class ReadText:
    """One sequence's keys and values.

    text      [ read ......... | guesses, then what really came ]
    table     [ computed ............ ]
    """

    table: SequenceBlocks
    num_read: int
    """Tokens of the text that were known when it was read last."""
    guesses: list[int] = field(default_factory=list)
    """What was expected behind them; the table has some of it."""

    def rewind(self, token_ids: list[int]) -> int:
        """Keep what the text has turned out to be, short of its last token, whose logits are
        needed. Returns how many tokens are to be computed, at least one."""
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
        """Its first blocks, for a step."""
        return [
            GroupBlocks(one.block_ids[: num_blocks - one.num_passed], one.num_passed)
            for one in self.table.tables
        ]


class DraftCache:
    """The texts that a draft model has read, unfinished ones only; those that were not drafted for
    lately give way to others. They are read again if need be."""

    def __init__(self, config: ResolvedConfig, windows: tuple[int | None, ...]) -> None:
        self._config = config
        cache = PrefixCache(config.max_idle_cached_blocks)
        layout = config.kv_layout(windows)
        self._pool = BlockPool(config.num_kv_blocks, config.block_size, cache, layout)
        self._texts: dict[int, ReadText] = {}
        """By sequence id, the longest unused first."""

    @property
    def num_blocks_used(self) -> int:
        return self._pool.num_held

    def open(self, sequence: Sequence) -> ReadText:
        """What there is of a text, perhaps of another one that begins alike."""
        text = self._texts.pop(sequence.seq_id, None) or self._started(sequence)
        self._texts[sequence.seq_id] = text
        return text

    def reserve(self, text: ReadText, num_tokens: int, kept: Container[int]) -> bool:
        """Make slots up to that token writable, at the cost of others' texts but not of `kept`."""
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
        """From token `start` on more of a text was computed: others may have full blocks of it, and
        those that windows have passed are given back."""
        text = self._texts[sequence.seq_id]
        num_tokens = min(text.table.num_tokens, len(sequence.token_ids))
        filled = self._pool.filled_by(start, num_tokens)
        if filled and self._config.enable_prefix_caching:
            chain = sequence.extend_chain(self._pool.block_size)
            offer_cached(self._pool, text.table, chain, filled)
        if self._pool.layout.slides:
            text.table.leave(num_tokens)

    def close(self, seq_id: int) -> None:
        """Give back what a text holds; unknown ones are fine."""
        text = self._texts.pop(seq_id, None)
        if text is not None:
            text.table.clear()

    def check_invariants(self) -> None:
        """Slow recount, between two steps.

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
