"""Keeps every unfinished sequence in its place (held back, waiting or running), moves and counts
them.

add ─► waiting ◄──── release ◄─ held back (further completions, until the prompt is computed)
         │  ▲
   start ▼  │ preempt
       running ─► finish (from anywhere)
"""

from bisect import insort
from collections import Counter

from engine.contract.generate import GenerateRequest
from engine.llm.cache.kv_cache import BlockPool, check
from engine.llm.cache.sequence_blocks import SequenceBlocks
from engine.llm.groups.group_classes import create_groups
from engine.llm.repetition import RepetitionDetector
from engine.llm.request import ActiveRequest, Sequence, Status
from engine.turns.policy import SchedulingPolicy
from engine.turns.queue import WaitingQueue


class Sequences:
    """All unfinished sequences. Each is in exactly one place, and only running ones hold blocks."""

    def __init__(self, policy: SchedulingPolicy, pool: BlockPool) -> None:
        self.waiting: WaitingQueue[Sequence] = policy.create_queue()
        self.running: list[Sequence] = []
        """Running sequences, by rank."""
        self.num_held_back = 0
        self.num_new_requests = 0
        """The number of requests of which no sequence was ever started."""
        self._policy = policy
        self._pool = pool
        self._requests: dict[str, ActiveRequest] = {}
        self._by_id: dict[int, Sequence] = {}
        self._num_sequences_ever = 0
        self._finished: list[int] = []

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    def requests(self) -> list[GenerateRequest]:
        """The unfinished requests."""
        return [owner.request for owner in self._requests.values()]

    def find_request(self, request_id: str) -> ActiveRequest | None:
        return self._requests.get(request_id)

    def find(self, seq_id: int) -> Sequence | None:
        return self._by_id.get(seq_id)

    def add(self, owner: ActiveRequest) -> None:
        """Create the request's sequences. The first one waits in the queue, and the others wait for
        it; those of a group wait in the queue together."""
        request, sampling = owner.request, owner.request.sampling
        rank = self._policy.rank(request, owner.arrival)
        max_num_tokens = min(owner.prompt_len + sampling.max_tokens, owner.max_model_len)
        detection = sampling.repetition_detection
        is_drawn = sampling.group is None or not sampling.group.is_search
        for number in range(sampling.num_sequences):
            scores_prompt = number == 0 and sampling.prompt_logprobs is not None
            sequence = Sequence(
                seq_id=self._num_sequences_ever,
                owner=owner,
                # The sequences of a group that draws one text have the index of that text.
                index=number // sampling.num_together if is_drawn else number,
                rank=(*rank, number),
                table=SequenceBlocks(self._pool),
                token_ids=list(request.prompt_token_ids),
                max_num_tokens=max_num_tokens,
                last_num_tokens=min(max_num_tokens, owner.num_slots + 1),
                states=request.states,
                prompt_logprobs=[None] if scores_prompt else None,
                detector=RepetitionDetector(detection) if detection is not None else None,
                num_prompt_tokens=owner.prompt_len,
            )
            self._num_sequences_ever += 1
            owner.sequences.append(sequence)
        owner.groups = create_groups(owner)
        for group in owner.groups:
            for sequence in group.sequences:
                sequence.group = group
        # Nothing is registered before everything is created.
        owner.num_unfinished = len(owner.sequences)
        owner.holds_back = len(owner.sequences) > len(owner.sequences[0].together)
        self._requests[request.request_id] = owner
        self._by_id |= {sequence.seq_id: sequence for sequence in owner.sequences}
        self.num_new_requests += 1
        self.num_held_back += len(owner.sequences)
        for sequence in owner.sequences[0].together:
            self._release(sequence)

    def release_siblings(self, owner: ActiveRequest) -> None:
        """Let further completions start once the first has computed the prompt or has ended."""
        if not owner.holds_back:
            return
        first = owner.sequences[0]
        if first.status is Status.FINISHED or first.num_computed >= owner.prompt_len:
            owner.holds_back = False
            for sibling in owner.sequences[1:]:
                if sibling.status is Status.HELD_BACK:  # else it was aborted alone
                    self._release(sibling)

    def start(self, sequence: Sequence, table: SequenceBlocks) -> None:
        """Move a sequence from the queue to the running ones, with the blocks that it starts
        from."""
        self.waiting.remove(sequence)
        sequence.table = table
        sequence.status = Status.RUNNING
        insort(self.running, sequence, key=_rank)
        self.num_new_requests -= not sequence.owner.was_started
        sequence.owner.was_started = True

    def preempt(self, sequence: Sequence) -> None:
        """Free the blocks of a running sequence and of those that run together with it, and put
        them back in the queue."""
        for each in sequence.together:
            self.running.remove(each)
            each.restart()
            each.status = Status.WAITING
            self.waiting.push(each)

    def finish(self, sequence: Sequence) -> None:
        """Forget a sequence and free what it holds, wherever it is. A sequence that is forgotten
        already is ignored."""
        match self.forget(sequence):
            case Status.HELD_BACK:
                self.num_held_back -= 1
            case Status.WAITING:
                self.waiting.remove(sequence)
            case Status.RUNNING:
                self.running.remove(sequence)
        sequence.table.clear()

    def forget(self, sequence: Sequence) -> Status:
        """Remove a sequence from the index, but not from its place. Returns its status before."""
        place, sequence.status = sequence.status, Status.FINISHED
        if self._by_id.pop(sequence.seq_id, None) is None:
            return Status.FINISHED
        if sequence.is_known:
            self._finished.append(sequence.seq_id)
        owner = sequence.owner
        owner.num_unfinished -= 1
        if owner.num_unfinished == 0:
            del self._requests[owner.request.request_id]
            self.num_new_requests -= not owner.was_started
        return place

    def start_over(self, pool: BlockPool) -> None:
        """Put everything that runs back in the queue, to be computed again in blocks of `pool`.

        Only the set of unfinished sequences is trusted; places and counts are derived from it
        again.
        """
        is_kept, self._pool = pool is self._pool, pool
        self.running = []
        self.waiting = self._policy.create_queue()
        for sequence in sorted(self._by_id.values(), key=_rank):
            if is_kept:
                sequence.table.clear()
            sequence.start_over(SequenceBlocks(pool))
            if sequence.status is not Status.HELD_BACK:
                sequence.status = Status.WAITING
                self.waiting.push(sequence)
        self.num_held_back = len(self._by_id) - len(self.waiting)
        self.num_new_requests = sum(not owner.was_started for owner in self._requests.values())
        for owner in self._requests.values():
            self.release_siblings(owner)

    def take_finished(self) -> list[int]:
        """The sequences that ended since the last call and that the executor knows."""
        finished, self._finished = self._finished, []
        return finished

    def check_invariants(self) -> None:
        """Recount everything slowly, between two steps.

        Raises:
            InvariantViolation: a sequence is lost or in two places, or a counter is wrong.
        """
        waiting = list(self.waiting)
        for sequences, status in ((self.running, Status.RUNNING), (waiting, Status.WAITING)):
            check(all(s.status is status for s in sequences), f"a sequence is not {status.name}")
            ranks = [s.rank for s in sequences]
            check(ranks == sorted(set(ranks)), f"{status.name} sequences are not in order")
        counts = Counter(s.status for s in self._by_id.values())
        expected = {
            Status.RUNNING: len(self.running),
            Status.WAITING: len(waiting),
            Status.HELD_BACK: self.num_held_back,
        }
        check(counts == Counter(expected), f"sequences are {counts}, but places hold {expected}")
        idle = [s for s in self._by_id.values() if s.status is not Status.RUNNING]
        check(not any(s.table.num_blocks for s in idle), "a sequence holds blocks but does not run")
        for sequence in self.running:
            has_more = sequence.num_missing >= 1 or sequence.num_in_flight >= 1
            check(
                has_more or sequence.waits_for_others, "a running sequence has nothing left to run"
            )
        for sequence in (*self.running, *waiting):
            one = all(other.status is sequence.status for other in sequence.together)
            check(one, "the sequences of a group differ in status")
        owners = {s.owner.request.request_id: s.owner for s in self._by_id.values()}
        check(owners == self._requests, "requests and their unfinished sequences disagree")
        num_new = sum(not owner.was_started for owner in owners.values())
        check(self.num_new_requests == num_new, f"{num_new} requests are new")

    def _release(self, sequence: Sequence) -> None:
        self.num_held_back -= 1
        sequence.status = Status.WAITING
        self.waiting.push(sequence)


def _rank(sequence: Sequence) -> tuple[int, ...]:
    return sequence.rank
