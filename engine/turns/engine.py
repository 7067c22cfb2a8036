"""`TurnsEngine`, the engine for requests that take turns.

In each step its work object chooses turns of one or several requests, which are computed together.
A request queues again after each turn, so one with a thousand turns does not hold up one with a
single turn.
"""

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic

from engine.contract.rejection import rejection
from engine.contract.request import EventT
from engine.contract.worker_settings import Policy
from engine.errors import ModelLoadError, QueueFull
from engine.runtime.fault import answer_for
from engine.turns.policy import create_policy
from engine.turns.queue import WaitingQueue
from engine.turns.work import Pending, RequestT, Turn, TurnStatsT, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnLimits:
    """The limits that all such engines have."""

    max_num_queued: int
    """The most requests that may wait for their first turn. How many turns one has does not matter,
    since another one comes between any two of them."""
    scheduling_policy: Policy = "fcfs"


class TurnsEngine(Generic[RequestT, EventT, TurnStatsT]):
    """A `engine.worker.stepping.SteppingEngine` for one kind of work."""

    def __init__(
        self, work: Work[RequestT, Any, Any, EventT, TurnStatsT], limits: TurnLimits
    ) -> None:
        self._work = work
        self._limits = limits
        self._policy = create_policy(limits.scheduling_policy)
        self._queue: WaitingQueue[Pending] = self._policy.create_queue()
        self._numbers = itertools.count()
        self._stats = work.stats_type()

    def add(self, request: RequestT) -> None:
        """Queue a request.

        Raises:
            InvalidParameter: the request asks for something impossible.
            QueueFull: the queue is full.
        """
        self._work.check(request)
        limit = self._limits.max_num_queued
        if sum(not one.is_begun for one in self._queue) >= limit:
            raise QueueFull(f"{limit} {self._work.items} are waiting already; try again later")
        self._push(self._work.pending(request))

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Drop a request. Unknown ids are ignored, and so are calls for one of several
        completions."""
        for pending in [one for one in self._queue if one.request.request_id == request_id]:
            if index is None or pending.request.num_completions == 1:
                self._queue.remove(pending)
                pending.close()

    def has_work(self) -> bool:
        """Whether a request has turns left."""
        return bool(self._queue)

    def step(self) -> tuple[list[EventT], TurnStatsT]:
        """Compute the turns that the work object chooses."""
        started_s = time.perf_counter()
        turns = self._take_turns()
        events = self._compute(turns)
        stats = self._work.count(self._stats, turns, events)
        self._stats = replace(
            stats, num_steps=stats.num_steps + 1, step_time_s=time.perf_counter() - started_s
        )
        if not self._queue:
            self._work.rest()
        return events, self.stats()

    def stats(self) -> TurnStatsT:
        """The current statistics."""
        num_running = self._work.num_running(self._queue, self._stats)
        return replace(self._stats, num_running=num_running, num_waiting=self._num_waiting())

    def try_out(self, requests: Sequence[RequestT], complaint: str) -> None:
        """Serve requests without counting them, so that the first client does not wait for lazy
        set-up.

        Raises:
            ModelLoadError: one fails; the message is `complaint` with the reason for `{reason}`.
        """
        for request in requests:
            self.add(request)
        while self.has_work():
            for event in self.step()[0]:
                if event.failure is not None:
                    raise ModelLoadError(complaint.format(reason=event.failure.message))
        self._stats = self._work.stats_type()

    def shutdown(self) -> None:
        """Do nothing, as only the model is held."""

    def _num_waiting(self) -> int:
        """The number of completions before their first turn."""
        return sum(max(0, one.request.num_completions - one.num_taken) for one in self._queue)

    def _push(self, pending: Pending) -> None:
        place = pending.order << 64 | next(self._numbers)
        pending.rank = self._policy.rank(pending.request, place)
        self._queue.push(pending)

    def _take_turns(self) -> list[Turn[Any]]:
        turns = []
        for pending in self._work.choose(self._queue):
            self._queue.remove(pending)
            turns.append(_next_turn(pending))
            if pending.has_turn:
                self._push(pending)
        return turns

    def _compute(self, turns: Sequence[Turn[Any]]) -> list[EventT]:
        """Return the events of turns. Turns that fail together are computed one by one, so that
        each fails only by itself."""
        try:
            outputs = self._work.compute(turns)
        except Exception as error:
            if len(turns) == 1:
                return self._failed(turns[0], error)
        else:
            pairs = zip(turns, outputs, strict=True)
            return [event for turn, output in pairs for event in self._finish(turn, output)]
        return [event for turn in turns for event in self._compute([turn])]

    def _finish(self, turn: Turn[Any], output: Any) -> list[EventT]:
        pending = turn.pending
        if pending.is_failed:
            return []
        is_queued = pending.has_turn
        try:
            events = self._work.finish(turn, output)
        except Exception as error:
            return self._failed(turn, error)
        if pending.has_turn and not is_queued:
            self._push(pending)
        return events

    def _failed(self, turn: Turn[Any], error: Exception) -> list[EventT]:
        """End the completion that a turn belongs to, unless its request has ended already."""
        pending, request = turn.pending, turn.pending.request
        if pending.is_failed:
            return []
        answer = answer_for(error, request.request_id)
        if request.num_completions > 1:
            return rejection(request, answer, [turn.number])
        pending.is_failed = True
        self.abort(request.request_id)
        return rejection(request, answer)


def _next_turn(pending: Pending) -> Turn[Any]:
    """Take a request's next turn."""
    queue_time_s = None
    if not pending.is_begun:
        queue_time_s = max(0.0, time.time() - pending.request.arrival_time_s)
    pending.num_taken += 1
    return Turn(pending, pending.num_taken - 1, queue_time_s)
