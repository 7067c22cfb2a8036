"""The order in which requests are served, and who may take whose place."""

from typing import Any, Protocol

from engine.contract.request import Request
from engine.contract.worker_settings import Policy
from engine.turns.queue import ArrivalQueue, RankedT, RankQueue, WaitingQueue

AnyRequest = Request[Any]


class SchedulingPolicy(Protocol):
    """A total order of requests. An engine serves the smallest rank first and, where it runs out of
    resources, takes them from the largest."""

    def priority(self, request: AnyRequest) -> int:
        """Return the effective part of a request's `priority`. Lower goes first."""
        ...

    def rank(self, request: AnyRequest, arrival: int) -> tuple[int, ...]:
        """Return the rank of a request; no two are equal. `arrival` counts requests or their
        turns."""
        ...

    def may_displace(self, waiting: AnyRequest, running: AnyRequest) -> bool:
        """Whether a newcomer may take the place of a running request."""
        ...

    def create_queue(self) -> WaitingQueue[RankedT]: ...


class FirstComeFirstServed:
    """The order of arrival. A running request keeps its place, unless an older one needs its blocks
    to go on."""

    def priority(self, request: AnyRequest) -> int:
        return 0

    def rank(self, request: AnyRequest, arrival: int) -> tuple[int, ...]:
        return (arrival,)

    def may_displace(self, waiting: AnyRequest, running: AnyRequest) -> bool:
        return False

    def create_queue(self) -> WaitingQueue[RankedT]:
        return ArrivalQueue()


class PriorityFirst:
    """The order of `priority`, lower values first, then of arrival. A newcomer takes the place of
    strictly less important requests only, so two requests never displace each other in turn."""

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
