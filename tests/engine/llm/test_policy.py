"""Orders of service."""

import pytest
from paged_executor import make_request

from engine.llm.policy import FirstComeFirstServed, PriorityFirst, create_policy
from engine.llm.queue import ArrivalQueue, RankQueue
from engine.llm.request import ActiveRequest, Sequence


def ranked(policy: object, priorities: list[int]) -> list[int]:
    """Arrival numbers in the order in which the policy serves them."""
    arrivals = range(len(priorities))
    return sorted(
        arrivals, key=lambda a: policy.rank(make_request("r", 1, priority=priorities[a]), a)
    )


@pytest.mark.parametrize(
    ("name", "order"), [("fcfs", [0, 1, 2, 3, 4]), ("priority", [3, 1, 4, 0, 2])]
)
def test_order(name: str, order: list[int]) -> None:
    assert ranked(create_policy(name), [5, 0, 5, -7, 0]) == order


def test_ranks_are_unique() -> None:
    for policy in (FirstComeFirstServed(), PriorityFirst()):
        ranks = [policy.rank(make_request("r", 1), arrival) for arrival in range(5)]
        assert len(set(ranks)) == 5


@pytest.mark.parametrize(
    ("policy", "priority", "other", "allowed"),
    [
        (FirstComeFirstServed(), -5, 5, False),
        (PriorityFirst(), 1, 2, True),
        (PriorityFirst(), 2, 2, False),
        (PriorityFirst(), 3, 2, False),
    ],
)
def test_only_strictly_less_important_ones_are_displaced(
    policy: object, priority: int, other: int, allowed: bool
) -> None:
    waiting, running = (make_sequence(p) for p in (priority, other))
    assert policy.may_displace(waiting, running) is allowed


def test_each_policy_brings_its_queue() -> None:
    assert isinstance(create_policy("fcfs").create_queue(), ArrivalQueue)
    assert isinstance(create_policy("priority").create_queue(), RankQueue)


def make_sequence(priority: int) -> Sequence:
    request = make_request("r", 1, priority=priority)
    owner = ActiveRequest(request, 0, 0.0, 0, frozenset(), b"")
    return Sequence(0, owner, 0, (0,), None, [1], 2, 2)
