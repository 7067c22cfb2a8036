"""Who runs next: the order in which requests are served and who may take whose place."""

from typing import Protocol

from engine.config import Policy
from engine.llm.queue import ArrivalQueue, RankQueue, WaitingQueue
from engine.llm.request import Sequence
from engine.types import GenerateRequest


class SchedulingPolicy(Protocol):
    """A total order of requests. The scheduler serves the smallest rank first and, when blocks run
    out, preempts the largest."""

    def rank(self, request: GenerateRequest, arrival: int) -> tuple[int, ...]:
        """`arrival` counts requests. Two requests never have the same rank."""

    def may_displace(self, waiting: Sequence, running: Sequence) -> bool:
        """Whether a newcomer that lacks blocks may preempt a running sequence."""

    def create_queue(self) -> WaitingQueue: ...


class FirstComeFirstServed:
    """By arrival. Whoever runs stays, unless an older one needs its blocks to go on."""

    def rank(self, request: GenerateRequest, arrival: int) -> tuple[int, ...]:
        return (arrival,)

    def may_displace(self, waiting: Sequence, running: Sequence) -> bool:
        return False

    def create_queue(self) -> WaitingQueue:
        return ArrivalQueue()


class PriorityFirst:
    """By `priority`, lower values first, then by arrival. A newcomer takes blocks from strictly
    less important ones, so that two requests never displace each other in turn."""

    def rank(self, request: GenerateRequest, arrival: int) -> tuple[int, ...]:
        return (request.priority, arrival)

    def may_displace(self, waiting: Sequence, running: Sequence) -> bool:
        return waiting.owner.request.priority < running.owner.request.priority

    def create_queue(self) -> WaitingQueue:
        return RankQueue()


_POLICIES: dict[Policy, type[SchedulingPolicy]] = {
    "fcfs": FirstComeFirstServed,
    "priority": PriorityFirst,
}


def create_policy(name: Policy) -> SchedulingPolicy:
    return _POLICIES[name]()
