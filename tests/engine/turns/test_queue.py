"""Both queues: smallest rank first, removal from anywhere."""

import random
from dataclasses import dataclass

import pytest

from engine.turns.queue import ArrivalQueue, RankQueue, WaitingQueue


@dataclass(eq=False)
class Item:
    rank: tuple[int, ...]


def item(*rank: int) -> Item:
    return Item(rank)


@pytest.fixture(params=[ArrivalQueue, RankQueue])
def queue(request):
    return request.param()


def drain(queue: WaitingQueue[Item]) -> list[tuple[int, ...]]:
    ranks = []
    while queue:
        assert queue.peek() is next(iter(queue))
        ranks.append(queue.pop().rank)
    return ranks


def test_newcomers_wait_behind_and_the_preempted_return_to_their_place(queue):
    for rank in ((5, 0), (6, 0), (8, 0), (2, 1), (2, 0), (7, 0), (5, 1)):
        queue.push(item(*rank))
    assert len(queue) == 7
    assert drain(queue) == [(2, 0), (2, 1), (5, 0), (5, 1), (6, 0), (7, 0), (8, 0)]


def test_an_empty_queue_has_no_first(queue):
    assert not queue and list(queue) == []
    for take in (queue.peek, queue.pop):
        with pytest.raises(IndexError):
            take()


def test_a_removed_item_can_return(queue):
    first, second = item(1), item(2)
    queue.push(first)
    queue.push(second)
    queue.remove(first)
    assert list(queue) == [second]
    queue.push(first)
    queue.remove(second)
    assert list(queue) == [first] and len(queue) == 1


def test_random_use_keeps_the_order(queue):
    expected: list[Item] = []
    unused = [item(rank) for rank in range(60)]
    for _ in range(500):
        if unused and (not expected or random.random() < 0.5):
            added = unused.pop(random.randrange(len(unused)))
            queue.push(added)
            expected = sorted([*expected, added], key=lambda s: s.rank)
        elif random.random() < 0.5:
            removed = expected.pop(random.randrange(len(expected)))
            queue.remove(removed)
            unused.append(removed)
        else:
            assert queue.pop() is expected[0]
            unused.append(expected.pop(0))
        assert list(queue) == expected
