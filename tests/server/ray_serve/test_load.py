"""How many servers a load asks for."""

import random
from types import SimpleNamespace

import pytest

from server.ray_serve.load import METRIC, FullnessPolicy


def wanted(target, fullness, *, running=None, before=1):
    numbers = {METRIC: dict(enumerate(fullness))} if fullness else {}
    context = SimpleNamespace(
        aggregated_metrics=numbers,
        current_num_replicas=len(fullness) if running is None else running,
        target_num_replicas=before,
    )
    return FullnessPolicy(target)(context)[0]


def test_it_asks_for_as_many_as_make_each_as_full_as_wanted():
    target = random.uniform(0.2, 2.0)
    number, wished = random.randint(1, 9), random.randint(1, 9)
    fullness = [random.random() for _ in range(number)]
    scale = wished * target / sum(fullness)
    assert wanted(target, [one * scale for one in fullness]) == pytest.approx(wished)


def test_one_server_stays_without_load():
    assert wanted(0.5, [0.0, 0.0, 0.0]) == 1


def test_a_server_that_has_said_nothing_yet_counts_as_the_mean():
    assert wanted(0.5, [1.0, 2.0], running=4) == pytest.approx(12)


def test_nothing_changes_until_servers_have_said_something():
    assert wanted(0.5, [], running=2, before=2) == 2
