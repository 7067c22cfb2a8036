"""Which cores a worker computes on."""

import os

import pytest

from engine.runtime.threads import leave_a_core


@pytest.mark.parametrize(
    ("cores", "left"), [({0}, None), ({0, 1}, None), ({4, 2, 7}, [4, 7]), ({0, 1, 2, 3}, [1, 2, 3])]
)
def test_a_core_is_left_to_http_where_there_are_more_than_two(monkeypatch, cores, left):
    chosen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: chosen.append(cores))
    leave_a_core()
    assert chosen == ([] if left is None else [left])
