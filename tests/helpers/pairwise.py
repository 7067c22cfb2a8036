"""Runs a part of a large grid. Of a test marked `pairwise` so many cases run that each value of a
parameter meets each value of every other one; tests marked `pairwise("name")` are one grid, and
which of them it is is one parameter more. Of a test marked `each_value` each value of a parameter
runs at least once, and of one marked `drawn(2)`, whose cases take the same way through the code,
two run.

Which cases run is drawn anew in each run, from the run's seed. ALL_CASES=1 runs all of them.
"""

import os
import random
from collections import defaultdict
from itertools import combinations
from typing import TypeVar

import pytest

from tests.helpers import draws

T = TypeVar("T")
Values = set[tuple[tuple[str, object], ...]]


@pytest.hookimpl(trylast=True)  # among the cases that were asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = set()
    for num_values, name in ((2, "pairwise"), (1, "each_value"), (0, "drawn")):
        grids: dict[object, list[pytest.Item]] = defaultdict(list)
        counts: dict[object, int] = {}
        for item in items:
            mark = item.get_closest_marker(name)
            if mark is not None and not draws.runs_all():
                named = mark.args if num_values else ()
                key: object = (item.path, *(named or [_test_of(item)]))
                grids[key].append(item)
                counts[key] = len(grids[key]) if num_values else mark.args[0]
        for key, grid in grids.items():
            rng = random.Random(f"{os.environ[draws.VARIABLE]} {grid[0].nodeid}")
            if num_values:
                kept = covering({item: _values_of(item, num_values) for item in grid}, rng)
            else:
                kept = {*rng.sample(grid, min(counts[key], len(grid)))}
            left_out |= {*grid} - kept
    config.hook.pytest_deselected(items=[item for item in items if item in left_out])
    items[:] = [item for item in items if item not in left_out]


def covering(cases: dict[T, Values], rng: random.Random) -> set[T]:
    """Draw cases in which each pair (or value) occurs, about as few as possible."""
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


def _values_of(item: pytest.Item, count: int) -> Values:
    """Return each so many of the item's values."""
    callspec = getattr(item, "callspec", None)
    params = callspec.params.items() if callspec else ()
    values = sorted((name, repr(value)) for name, value in params)  # some cannot be hashed
    named = [("its test", _test_of(item)), *values]
    return {*combinations(named, count)} or {*combinations(named, 1)}
