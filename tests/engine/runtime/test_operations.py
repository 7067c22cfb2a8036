"""What an operator sees while the C++ operations are compiled."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from engine.contract.status import Phase
from engine.runtime import operations
from engine.runtime.operations import build_operations, estimated_s, in_words
from kernels import building, native
from tests.helpers.host import Host


def build(monkeypatch: pytest.MonkeyPatch, library: Callable[[], Any]) -> Host:
    host = Host()
    monkeypatch.setattr(native, "is_built", lambda: False)
    monkeypatch.setattr(native, "library", library)
    monkeypatch.setattr(operations, "_REPORT_S", 0.001)
    build_operations(host)
    return host


def test_a_build_tells_its_share_and_what_is_left(monkeypatch):
    shares = iter([0.25, 0.25, *(random.uniform(0.3, 1.0) for _ in range(3))])
    told = []

    def share():
        told.append(next(shares, 1.0))
        return told[-1]

    monkeypatch.setattr(building, "share_built", lambda: share)

    def library():
        while len(told) < 5:
            time.sleep(0.001)

    host = build(monkeypatch, library)
    assert [progress for _, progress, _ in host.reports[:4]] == told[1:5]
    assert {phase for phase, _, _ in host.reports} == {Phase.LOADING}
    assert all(detail.startswith("compiling CPU operations, ") for _, _, detail in host.reports)
    count = len(host.reports)
    time.sleep(0.02)
    assert len(host.reports) == count, "nobody tells any more"


def test_a_build_that_fails_is_told_no_longer(monkeypatch):
    monkeypatch.setattr(building, "share_built", lambda: lambda: 0.5)

    def library():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        build(monkeypatch, library)


def test_the_estimate_follows_the_pace_once_there_is_one(monkeypatch):
    monkeypatch.setattr(operations.os, "cpu_count", lambda: 2)
    whole = building.BUILD_CORE_S / 2
    assert estimated_s(0.0, 0.0, 0.0) == whole
    assert estimated_s(0.5, 0.5, 10.0) == whole / 2 - 10
    assert estimated_s(0.0, 0.01, 1e9) == 0.0
    assert estimated_s(0.0, 0.5, 30.0) == pytest.approx(30.0)
    assert estimated_s(0.6, 0.8, 30.0) == pytest.approx(30.0)
    assert estimated_s(0.0, 1.0, 30.0) == 0.0


def test_estimates_are_rounded():
    words = {0: "a few seconds", 9.9: "a few seconds", 33: "about 35 s", 89: "about 90 s"}
    words |= {91: "2 minutes", 290: "5 minutes"}
    assert {seconds: in_words(seconds) for seconds in words} == words
