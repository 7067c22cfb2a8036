"""Finds the sequence that made a step fail: the step's sequences run one at a time until it is
known, those of a group together.

A sequence that fails alone is the culprit and ends. One that gets its next token, or ends, is
cleared. Every suspect that is run therefore advances, and a fault that occurs only when sequences
run together cannot stop the engine.
"""

import structlog

from engine.llm.decision import ScheduleDecision
from engine.llm.request import Sequence, Status
from engine.llm.sequences import Sequences

log = structlog.get_logger(__name__)


class FaultIsolation:
    """The suspects, in the order in which they run alone."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences
        self._suspects: dict[int, None] = {}

    def next_suspect(self) -> Sequence | None:
        """Return the next suspect, if any is left. Aborted ones are forgotten."""
        while self._suspects:
            seq_id = next(iter(self._suspects))
            sequence = self._sequences.find(seq_id)
            if sequence is not None:
                return sequence
            del self._suspects[seq_id]
        return None

    def find_culprit(self, error: Exception, decision: ScheduleDecision | None) -> Sequence | None:
        """Return the culprit if a failed step had nothing else in it; otherwise make all of its
        sequences suspects. Drafts count as something else: a suspect runs without them.

        Args:
            decision: the step's decision; None if it could not even be made.
        """
        members = self._members(decision)
        firsts = dict.fromkeys(sequence.together[0] for sequence in members)
        if len(firsts) == 1 and (decision is None or _is_of(members, decision)):
            return members[0]
        log.warning(
            "a step failed; its sequences run one at a time until the cause is found",
            error=type(error).__name__,
            num_sequences=len(members),
        )
        self._suspects |= dict.fromkeys(sequence.seq_id for sequence in firsts)
        return None

    def clear(self, sequence: Sequence) -> None:
        """Clear a sequence whose step went well and brought a token or its end. A former suspect is
        preempted, because the next one needs its blocks; it continues once all have run alone."""
        first = sequence.together[0]
        if self._suspects.pop(first.seq_id, 0) is None and first.status is Status.RUNNING:
            self._sequences.preempt(sequence)

    def _members(self, decision: ScheduleDecision | None) -> list[Sequence]:
        if decision is not None:
            found = map(self._sequences.find, _ids_of(decision))
            return [sequence for sequence in found if sequence is not None]
        suspect = self.next_suspect()
        if suspect is not None:
            return [suspect]
        # Of the waiting ones, only the first can have been looked at without running by now.
        waiting = self._sequences.waiting
        return [*self._sequences.running, *([waiting.peek()] if waiting else [])]


def _ids_of(decision: ScheduleDecision) -> dict[int, None]:
    """The sequences for which a step does something."""
    ids = dict.fromkeys(scheduled.seq_id for scheduled in decision.scheduled)
    if decision.advanced is not None:
        ids[decision.advanced.seq_id] = None
    return ids


def _is_of(members: list[Sequence], decision: ScheduleDecision) -> bool:
    """Whether a step had nothing but these sequences."""
    return len(_ids_of(decision)) == len(members) and not any(
        scheduled.drafts for scheduled in decision.scheduled
    )
