"""Who runs next: the order in which requests are served and who may take whose place."""

from typing import Any, Protocol

from engine.config import Policy
from engine.scheduling.queue import ArrivalQueue, RankedT, RankQueue, WaitingQueue
from engine.types import Request

AnyRequest = Request[Any]


class SchedulingPolicy(Protocol):
    """A total order of requests. An engine serves the smallest rank first and, where it runs out of
    what they hold, takes it from the largest."""

    def priority(self, request: AnyRequest) -> int:
        """The part of a request's `priority` that counts. Lower goes first."""
        ...

    def rank(self, request: AnyRequest, arrival: int) -> tuple[int, ...]:
        """`arrival` counts requests, or turns of theirs. No two ranks are equal."""
        ...

    def may_displace(self, waiting: AnyRequest, running: AnyRequest) -> bool:
        """Whether a newcomer may take the place of one that runs."""
        ...

    def create_queue(self) -> WaitingQueue[RankedT]: ...


class FirstComeFirstServed:
    """By arrival. Whoever runs stays, unless an older one needs its blocks to go on."""

    def priority(self, request: AnyRequest) -> int:
        return 0

    def rank(self, request: AnyRequest, arrival: int) -> tuple[int, ...]:
        return (arrival,)

    def may_displace(self, waiting: AnyRequest, running: AnyRequest) -> bool:
        return False

    def create_queue(self) -> WaitingQueue[RankedT]:
        return ArrivalQueue()


class PriorityFirst:
    """By `priority`, lower values first, then by arrival. A newcomer takes the place of strictly
    less important ones, so that two requests never displace each other in turn."""

    def priority(self, request: AnyRequest) -> int:
        return request.priority

    def rank(self, request: AnyRequest, arrival: int) -> tuple[int, ...]:
        return (request.priority, arrival)

    def may_displace(self, waiting: AnyRequest, running: AnyRequest) -> bool:
        return waiting.priority < running.priority

    def create_queue(self) -> WaitingQueue[RankedT]:
        return RankQueue()


_POLICIES: dict[Policy, type[SchedulingPolicy]] = {
    "fcfs": FirstComeFirstServed,
    "priority": PriorityFirst,
}


def create_policy(name: Policy) -> SchedulingPolicy:
    return _POLICIES[name]()
