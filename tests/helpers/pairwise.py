"""Runs a part of a large grid. Of a test marked `pairwise` so many cases run that each value of a
parameter meets each value of every other one; tests marked `pairwise("name")` are one grid, and
which of them it is is one parameter more.

Which cases run is drawn anew in each run, from the run's seed. ALL_CASES=1 runs all of them.
"""

import os
import random
from collections import defaultdict
from itertools import combinations
from typing import TypeVar

import pytest

from tests.helpers import draws

VARIABLE = "ALL_CASES"
T = TypeVar("T")
Pairs = set[tuple[tuple[str, object], ...]]


def runs_all() -> bool:
    """Whether this run leaves nothing out."""
    return VARIABLE in os.environ


@pytest.hookimpl(trylast=True)  # among the cases that were asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    grids: dict[object, list[pytest.Item]] = defaultdict(list)
    for item in items:
        mark = item.get_closest_marker("pairwise")
        if mark is not None and not runs_all():
            grids[item.path, *(mark.args or [_test_of(item)])].append(item)
    left_out = set()
    for grid in grids.values():
        rng = random.Random(f"{os.environ[draws.VARIABLE]} {grid[0].nodeid}")
        left_out |= {*grid} - covering({item: _pairs_of(item) for item in grid}, rng)
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def covering(cases: dict[T, Pairs], rng: random.Random) -> set[T]:
    """Draw cases in which each pair occurs, about as few as possible."""
    order = rng.sample([*cases], len(cases))
    missing = set().union(*cases.values())
    drawn = set()
    while missing:
        best = max(order, key=lambda one: len(cases[one] & missing))
        missing -= cases[best]
        drawn.add(best)
    return drawn


def _test_of(item: pytest.Item) -> str:
    return getattr(item, "originalname", item.name)


def _pairs_of(item: pytest.Item) -> Pairs:
    callspec = getattr(item, "callspec", None)
    values = sorted(callspec.params.items()) if callspec else []
    named = [("its test", _test_of(item)), *values]
    return {*combinations(named, 2)} or {*combinations(named, 1)}
