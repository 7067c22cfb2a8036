"""Replicas behind the server's router, in virtual time.

Requests are routed at their arrival, replicas step by themselves, and the router learns of first
tokens and ends when their steps end, as in the server. A replica may die, and comes back with an
empty cache; its clients send their requests again at once. Some may sleep, and one of these wakes
when the others are too few (`engine.worker.replicas.client`).
"""

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from statistics import mean
from typing import Literal

from engine.contract.generate import GenerateRequest, TokenEvent
from engine.worker.replicas.job import Job, job_of
from engine.worker.replicas.prefix_map import PrefixMap
from engine.worker.replicas.router import Router, Running
from tools.scaling.load import Sent
from tools.scaling.replica import Machine, SimulatedReplica, request_of

Policy = Literal["prefixes", "least work", "random"]
"""The server's router, the same without knowledge of prefixes, and a draw."""
MOST_FIRST_S, MOST_EACH_S = 5.0, 0.1
"""A request is well served if its first token comes within the former, and then a token within the
latter on average."""


@dataclass(slots=True)
class Served:
    """What became of a request."""

    sent: Sent
    replica: str = ""
    first_s: float | None = None
    end_s: float | None = None
    num_cached: int = 0
    num_tries: int = 0
    running: Running | None = None

    @property
    def wait_s(self) -> float:
        """The time to the first token."""
        assert self.first_s is not None
        return self.first_s - self.sent.arrival_s

    @property
    def each_s(self) -> float:
        """The mean time between two tokens."""
        assert self.first_s is not None and self.end_s is not None
        return (self.end_s - self.first_s) / max(1, self.sent.answer_len - 1)

    @property
    def is_good(self) -> bool:
        return self.wait_s <= MOST_FIRST_S and self.each_s <= MOST_EACH_S


@dataclass(frozen=True, slots=True)
class Failure:
    """A replica's end, and how long it takes to come back."""

    replica: int
    at_s: float
    down_s: float


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    served: list[Served]
    busy_s: list[float]
    num_resent: int = 0
    woken_s: list[float] = field(default_factory=list)
    """When sleeping replicas were woken."""

    @property
    def hit_rate(self) -> float:
        """The share of prompt tokens that were cached."""
        total = sum(len(one.sent.prompt) for one in self.served)
        return sum(one.num_cached for one in self.served) / total

    @property
    def max_over_mean(self) -> float:
        """How much more than the mean the busiest replica has computed, in time."""
        return max(self.busy_s) / mean(self.busy_s)

    @property
    def share_good(self) -> float:
        return mean(one.is_good for one in self.served)

    @property
    def duration_s(self) -> float:
        return max(one.end_s or 0.0 for one in self.served)


class Cluster:
    """A run of a number of replicas.

    Args:
        num_awake: how many do not sleep at the start; None is all.
        wake_s: how long one takes to wake.
    """

    def __init__(
        self,
        machine: Machine,
        num_replicas: int,
        policy: Policy = "prefixes",
        *,
        num_awake: int | None = None,
        wake_s: float = 0.0,
    ) -> None:
        self._machine = machine
        self._info = machine.info()
        self._policy = policy
        self._now_s = 0.0
        self._replicas = {
            f"r{number}": SimulatedReplica(machine, lambda: self._now_s)
            for number in range(num_replicas)
        }
        for name in [*self._replicas][num_awake or num_replicas :]:
            self._replicas[name].awake_from_s = float("inf")
        self._sleeping = [*self._replicas][num_awake or num_replicas :]
        self._wake_s = wake_s
        self._router = Router(self._replicas, max_idle=machine.max_idle_blocks)
        self._rng = random.Random(0)
        self._live: dict[str, Served] = {}
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        """What will happen, such as the ends of steps under way: time, a number, what to do."""
        self._ids = count()

    def run(self, load: Sequence[Sent], failures: Sequence[Failure] = ()) -> Outcome:
        """Serve all requests."""
        outcome = Outcome([Served(sent) for sent in load], [])
        arrivals = [(one.sent.arrival_s, next(self._ids), one) for one in outcome.served]
        arrivals.reverse()
        pending = sorted(failures, key=lambda one: one.at_s, reverse=True)
        while arrivals or self._later or pending:
            arrival_s = arrivals[-1][0] if arrivals else float("inf")
            later_s = self._later[0][0] if self._later else float("inf")
            failure_s = pending[-1].at_s if pending else float("inf")
            self._now_s = min(arrival_s, later_s, failure_s)
            if self._now_s == failure_s:
                outcome.num_resent += self._fail(pending.pop())
            elif self._now_s == arrival_s:
                self._send(arrivals.pop()[2], outcome)
            else:
                heapq.heappop(self._later)[2]()
        outcome.busy_s = [one.busy_s for one in self._replicas.values()]
        return outcome

    def _send(self, one: Served, outcome: Outcome | None) -> None:
        request_id = str(next(self._ids))
        request = request_of(request_id, one.sent)
        job = job_of(request, self._info, 0)
        if self._policy != "prefixes":
            job = replace(job, chain=())
        ready = [n for n, r in self._replicas.items() if r.awake_from_s <= self._now_s]
        if not ready:  # the first one that comes back takes it
            soonest = min(r.awake_from_s for r in self._replicas.values())
            ready = [n for n, r in self._replicas.items() if r.awake_from_s == soonest]
        elif self._sleeping and self._router.lacks(ready, self._num_waking()):
            self._replicas[self._sleeping.pop(0)].awake_from_s = self._now_s + self._wake_s
            if outcome is not None:
                outcome.woken_s.append(self._now_s)
        one.num_tries += 1
        self._give(request, job, self._choose(job, ready), one)

    def _give(self, request: GenerateRequest, job: Job, name: str, one: Served) -> None:
        one.replica = name
        one.running = self._router.begin(job, name)
        self._live[request.request_id] = one
        self._replicas[name].scheduler.add(request)
        self._begin_step(name)

    def _num_waking(self) -> int:
        times = (replica.awake_from_s for replica in self._replicas.values())
        return sum(self._now_s < at_s < float("inf") for at_s in times)

    def _choose(self, job: Job, ready: Sequence[str]) -> str:
        return (
            self._rng.choice(ready) if self._policy == "random" else self._router.choose(job, ready)
        )

    def _begin_step(self, name: str) -> None:
        replica = self._replicas[name]
        start_s = max(self._now_s, replica.awake_from_s)
        end_s = replica.begin_step(start_s)
        if end_s is not None:
            self._at(end_s, partial(self._end_step, name, replica.generation))

    def _at(self, at_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (at_s, next(self._ids), action))

    def _end_step(self, name: str, generation: int) -> None:
        if self._replicas[name].generation != generation:  # it has died meanwhile
            return
        for event in self._replicas[name].end_step(self._now_s):
            self._note(event)
        self._begin_step(name)

    def _note(self, event: TokenEvent) -> None:
        one = self._live[event.request_id]
        assert one.running is not None
        if not one.running.has_begun:
            one.first_s, one.num_cached = self._now_s, event.num_cached_tokens
            self._router.note_first_token(one.running, event.num_cached_tokens)
        if event.finish_reason is not None:
            one.end_s = self._now_s
            self._router.end(one.running)
            del self._live[event.request_id]

    def _fail(self, failure: Failure) -> int:
        """End a replica. Returns the number of requests that are sent again."""
        name = f"r{failure.replica}"
        replica = self._replicas[name]
        replica.restart()
        replica.awake_from_s = self._now_s + failure.down_s
        lost = {request_id: one for request_id, one in self._live.items() if one.replica == name}
        for request_id, one in lost.items():
            assert one.running is not None
            self._router.end(one.running)
            del self._live[request_id]
        self._router.lose(name)
        for one in lost.values():
            self._send(one, None)
        return len(lost)


def rate_in_one_cache(machine: Machine, num_replicas: int, load: Sequence[Sent]) -> float:
    """The hit rate of one cache that is as large as those of all replicas together, if each request
    was computed at once."""
    prefixes = PrefixMap(num_replicas * machine.max_idle_blocks)
    info, found = machine.info(), 0
    for number, sent in enumerate(load):
        job = job_of(request_of(str(number), sent), info, 0)
        hold = prefixes.hold(job.chain)
        found += job.num_prompt_tokens - job.uncached_tokens(hold.num_known)
        prefixes.release(hold, is_computed=True)
    return found / sum(len(sent.prompt) for sent in load)
