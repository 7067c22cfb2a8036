"""Which cores a worker computes on, and with how many threads."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from structlog.testing import capture_logs

from engine.runtime import threads as threads_module
from engine.runtime.run_queue import RunQueue
from engine.runtime.side_work import SideWork
from engine.runtime.thread_count import WINDOW_S
from engine.runtime.threads import IDLE_S, ComputeThreads, compute_threads, leave_a_core
from tests.helpers.clock import Clock


@pytest.mark.parametrize(
    ("cores", "left"), [({0}, None), ({0, 1}, None), ({4, 2, 7}, [4, 7]), ({0, 1, 2, 3}, [1, 2, 3])]
)
def test_a_core_is_left_to_http_where_there_are_more_than_two(monkeypatch, cores, left):
    chosen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: cores)
    monkeypatch.setattr(os, "sched_setaffinity", lambda process, cores: chosen.append(cores))
    leave_a_core()
    assert chosen == ([] if left is None else [left])


class Waits:
    """Stands in for the run queue: `share` threads have waited since the last call."""

    share = 0.0

    def waited_s(self):
        return self.share * WINDOW_S


@pytest.fixture
def waits():
    return Waits()


@pytest.fixture
def clock():
    return Clock(0.0)


@pytest.fixture
def threads(waits, clock):
    """Four threads; `threads.used` is what operations were told, `threads.step` takes a step."""
    used = []
    threads = ComputeThreads(4, waits, used.append, clock)
    threads.used = used

    def step(elapsed_s=1.01 * WINDOW_S):
        threads.before_step()
        clock.now_s += elapsed_s
        threads.after_step()

    threads.step = step
    return threads


def test_operations_use_fewer_threads_while_these_wait(threads, waits):
    threads.step()
    assert (threads.num_threads, threads.used) == (4, [])
    waits.share = 3.0
    for _ in range(3):
        threads.step()
    assert (threads.num_threads, threads.used) == (4, [])
    threads.step()
    assert (threads.num_threads, threads.used) == (1, [1])
    waits.share = 0.0
    for _ in range(20):
        threads.step()
    assert (threads.num_threads, threads.used) == (4, [1, 2, 4])


def test_a_change_that_lasts_is_logged_and_a_try_is_not(threads, waits):
    with capture_logs() as logs:
        waits.share = 3.0
        for _ in range(4):
            threads.step()
        assert [(line["threads"], line["most"]) for line in logs] == [(1, 4)]
        waits.share = 0.0
        for _ in range(100):
            threads.step()
            waits.share = 0.9 if threads.num_threads > 1 else 0.0
    assert len(logs) == 1
    assert max(threads.used) > 1


def test_what_was_waited_while_idle_does_not_count(threads, waits, clock):
    threads.step(WINDOW_S / 2)
    waits.share = 100.0
    clock.now_s += IDLE_S + 1
    threads.before_step()
    waits.share = 0.0
    threads.step()
    assert threads.num_threads == 4


def test_a_long_step_is_not_taken_for_idling(threads, waits):
    waits.share = 1000.0
    threads.step(60.0)
    assert threads.num_threads == 2


def test_work_beside_the_steps_has_a_thread_of_theirs(clock):
    side_work, used, end = SideWork(), [], threading.Event()
    threads = ComputeThreads(3, Waits(), used.append, clock, side_work)
    threads.before_step()
    with ThreadPoolExecutor(4) as others:
        for _ in range(4):  # amid the step
            side_work.submit(others, lambda: end.wait(10))
        assert used == [2, 1]
        threads.after_step()
        threads.before_step()
        assert used == [2, 1]
        threads.after_step()
        end.set()
    threads.before_step()
    assert used == [2, 1, 3]


def test_work_that_fails_is_over():
    side_work = SideWork()
    with ThreadPoolExecutor(1) as other:
        assert isinstance(side_work.submit(other, lambda: 1 / 0).exception(10), ZeroDivisionError)
    with pytest.raises(RuntimeError):  # the executor has ended
        side_work.submit(other, list)
    assert side_work.num_running == 0


def test_without_a_count_of_waiting_their_number_stays():
    threads = ComputeThreads(4, None, lambda threads: pytest.fail("changed"))
    threads.before_step()
    threads.after_step()
    assert threads.num_threads == 4


def test_where_linux_does_not_count_it_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(threads_module, "RunQueue", lambda: RunQueue(tmp_path))
    with capture_logs() as logs:
        threads = compute_threads(adaptive=True)
    assert "number stays fixed" in logs[0]["event"]
    threads.before_step()
    threads.after_step()
    assert threads.num_threads == 2
