"""Decides whether waiting sequences find enough free blocks to start, and which running ones must
be displaced."""

from engine.llm.cache.kv_cache import BlockPool
from engine.llm.cache.sequence_blocks import SequenceBlocks
from engine.llm.request import Sequence
from engine.llm.sequences import Sequences
from engine.turns.policy import SchedulingPolicy


class FreeBlocks:
    """The free blocks, less those that running sequences still need.

    Args:
        pool: the pool of blocks; it is replaced when the scheduler starts over.
    """

    def __init__(self, pool: BlockPool, sequences: Sequences, policy: SchedulingPolicy) -> None:
        self.pool = pool
        self._sequences = sequences
        self._policy = policy

    def fits(self, sequences: list[Sequence], tables: list[SequenceBlocks]) -> bool:
        """Whether all known tokens of waiting sequences fit if these start together with
        `tables`."""
        return self._num_lacking(sequences, tables) <= 0

    def victims(
        self, sequences: list[Sequence], tables: list[SequenceBlocks]
    ) -> list[Sequence] | None:
        """The running sequences whose blocks the waiting ones need and which the policy lets them
        displace, the largest rank first. None if even that does not free enough blocks."""
        victims: list[Sequence] = []
        lacking = self._num_lacking(sequences, tables)
        asks = sequences[0].owner.request
        for victim in reversed(self._sequences.running):
            if lacking <= 0 or not self._policy.may_displace(asks, victim.owner.request):
                break
            victims.append(victim)
            lacking -= victim.table.num_blocks
        return victims if lacking <= 0 else None

    def _num_lacking(self, sequences: list[Sequence], tables: list[SequenceBlocks]) -> int:
        needs = zip(sequences, tables, strict=True)
        num_needed = sum(table.blocks_to_reach(len(each.token_ids)) for each, table in needs)
        return num_needed - self._num_spare()

    def _num_spare(self) -> int:
        """The number of free blocks beyond what running prompts still need and one per table to
        grow."""
        num_promised = len(self._sequences.running) * len(self.pool.layout.windows)
        for sequence in self._sequences.running:
            if not sequence.is_decoding:
                num_promised += sequence.table.blocks_lacking(sequence.num_known)
        return self.pool.num_free - num_promised
