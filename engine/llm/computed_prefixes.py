"""Finds how much of a new sequence's text is computed already, by other sequences or before it was
preempted, and offers what the sequence computes to others."""

from engine.contract.resolved_config import ResolvedConfig
from engine.llm.cache.cache_journal import CachedText
from engine.llm.cache.kv_cache import BlockPool
from engine.llm.cache.sequence_blocks import SequenceBlocks, find_cached, offer_cached
from engine.llm.kv_store.kv_store import KvStore
from engine.llm.request import Sequence


class ComputedPrefixes:
    """The prefix cache as sequences use it, with counts of its hits.

    Args:
        pool: the pool of blocks; it is replaced when the scheduler starts over.
        store: gets a copy of each block that others can use.
    """

    def __init__(
        self, config: ResolvedConfig, pool: BlockPool, store: KvStore | None = None
    ) -> None:
        self.pool = pool
        self._store = store
        self.num_queries = 0
        """The number of prompt tokens that were looked up."""
        self.num_hits = 0
        """The number of prompt tokens that were found."""
        self._is_enabled = config.enable_prefix_caching

    def find(self, sequence: Sequence) -> SequenceBlocks:
        """Find computed blocks for a sequence, except for its last token, whose logits are
        needed."""
        chain: list[bytes] = []
        if self._counts(sequence):
            chain = sequence.extend_chain(self.pool.block_size)
        most = max(0, len(sequence.token_ids) - 1)
        if sequence.group is not None:
            most -= most % self.pool.block_size  # so that shared blocks are never copied
        cached = find_cached(self.pool, chain, most)
        donor = None if sequence.group is not None else sequence.owner.donor()
        num_forked = sequence.owner.prompt_len - 1
        if (
            donor is not None
            and num_forked >= cached.num_tokens
            and donor.table.can_fork(num_forked)
        ):
            return donor.table.fork(num_forked)
        return SequenceBlocks(self.pool).adopt(cached)

    def note_first_start(self, sequence: Sequence, table: SequenceBlocks) -> None:
        """Note that the first sequence of a request starts with `table`."""
        for sibling in sequence.owner.sequences:
            sibling.num_cached_tokens = table.num_tokens
        if self._counts(sequence):
            self.num_queries += sequence.owner.prompt_len
            self.num_hits += table.num_tokens

    def note_computed(self, sequence: Sequence, start: int) -> None:
        """Note that more of a sequence's text is computed, from token `start` on: offer the newly
        filled blocks to others, and give back those that the windows have passed."""
        filled = self.pool.filled_by(start, sequence.num_computed)
        if filled and self._is_enabled:
            chain = sequence.extend_chain(self.pool.block_size)
            text = None
            if self.pool.cache.journal is not None:
                text = CachedText.of(sequence.owner.request, sequence.token_ids, chain)
            offer_cached(self.pool, sequence.table, chain, filled, text)
            # An adapter's key stands for other weights after a restart.
            if self._store is not None and sequence.owner.request.adapter is None:
                hashes = chain[filled.start : filled.stop]
                self._store.offer(hashes, len(self.pool.layout.windows))
            if sequence.table.state is not None:
                sequence.table.state.note_computed(sequence.num_computed, chain)
        self._pin(sequence)
        if self.pool.layout.slides:
            sequence.table.leave(sequence.num_computed)

    def _pin(self, sequence: Sequence) -> None:
        """Pin what the request asks for, once it is computed."""
        owner, size = sequence.owner, self.pool.block_size
        if not self._is_enabled or sequence is not owner.sequences[0]:
            return
        while owner.pins and sequence.num_computed >= owner.pins[0].num_tokens:
            pin = owner.pins.pop(0)
            hashes = sequence.extend_chain(size)[: pin.num_tokens // size]
            num_groups, client = len(self.pool.layout.windows), owner.request.client
            self.pool.cache.pin(hashes, num_groups, client, pin.seconds)
            if hashes and self._store is not None and owner.request.adapter is None:
                entries = [(group, one) for one in hashes for group in range(num_groups)]
                self._store.touch(entries, pin.seconds)

    def _counts(self, sequence: Sequence) -> bool:
        return self._is_enabled and sequence.may_skip
