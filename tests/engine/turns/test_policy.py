"""Orders of service."""

import pytest

from engine.contract.request import Request
from engine.turns.policy import FirstComeFirstServed, PriorityFirst, create_policy
from engine.turns.queue import ArrivalQueue, RankQueue


def asking(priority: int) -> Request:
    return Request(request_id="r", model="m", priority=priority)


def ranked(policy: object, priorities: list[int]) -> list[int]:
    """Arrival numbers in the order in which the policy serves them."""
    arrivals = range(len(priorities))
    return sorted(arrivals, key=lambda a: policy.rank(asking(priorities[a]), a))


@pytest.mark.parametrize(
    ("name", "order"), [("fcfs", [0, 1, 2, 3, 4]), ("priority", [3, 1, 4, 0, 2])]
)
def test_order(name, order):
    assert ranked(create_policy(name), [5, 0, 5, -7, 0]) == order


def test_ranks_are_unique():
    for policy in (FirstComeFirstServed(), PriorityFirst()):
        ranks = [policy.rank(asking(0), arrival) for arrival in range(5)]
        assert len(set(ranks)) == 5


@pytest.mark.parametrize(("name", "counts"), [("fcfs", 0), ("priority", -7)])
def test_what_counts_of_a_priority(name, counts):
    assert create_policy(name).priority(asking(-7)) == counts


@pytest.mark.parametrize(
    ("policy", "priority", "other", "allowed"),
    [
        (FirstComeFirstServed(), -5, 5, False),
        (PriorityFirst(), 1, 2, True),
        (PriorityFirst(), 2, 2, False),
        (PriorityFirst(), 3, 2, False),
    ],
)
def test_only_strictly_less_important_ones_are_displaced(policy, priority, other, allowed):
    assert policy.may_displace(asking(priority), asking(other)) is allowed


def test_each_policy_brings_its_queue():
    assert isinstance(create_policy("fcfs").create_queue(), ArrivalQueue)
    assert isinstance(create_policy("priority").create_queue(), RankQueue)
