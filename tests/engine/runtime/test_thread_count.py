"""Fewer threads on a busy machine, all of them again on a free one: a model of both."""

import random
from itertools import pairwise

import pytest

from engine.runtime.thread_count import FIRST_PAUSE_S, LONGEST_PAUSE_S, WINDOW_S, ThreadCount


class Machine:
    """Cores that other processes share: a thread that finds none waits.

    `noise` makes windows differ.
    """

    def __init__(self, cores, noise=0.0):
        self.cores = cores
        self.busy = 0
        self.noise = noise
        self.time_s = 0.0

    def waiting(self, threads):
        """Threads that wait on average when cores are shared fairly."""
        running = threads + self.busy
        fair = max(0.0, threads * (1 - self.cores / running)) if running > self.cores else 0.0
        return max(0.0, fair + random.uniform(-self.noise, self.noise))

    def run(self, count, seconds, step_s=WINDOW_S):
        """What `count` says after each judgement."""
        history = []
        end_s = self.time_s + seconds
        waited_s = 0.0
        while self.time_s < end_s:
            self.time_s += step_s
            waited_s += step_s * self.waiting(count.now)
            if count.is_due(step_s):
                history.append(count.judge(self.time_s, waited_s))
                waited_s = 0.0
        return history


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 64])
def test_a_free_machine_is_used_whole(cores):
    assert set(Machine(cores).run(ThreadCount(cores), 60)) == {cores}


def test_beside_two_busy_processes_one_of_two_threads_is_left():
    machine, count = Machine(2), ThreadCount(2)
    machine.run(count, 1)
    machine.busy = 2
    assert machine.run(count, 4 * WINDOW_S) == [2, 2, 2, 1]
    assert set(machine.run(count, 60)) == {1}


def test_it_comes_back_soon_when_they_end():
    machine, count = Machine(2), ThreadCount(2)
    machine.busy = 2
    machine.run(count, 20)
    machine.busy = 0
    history = machine.run(count, FIRST_PAUSE_S + 2 * WINDOW_S)
    assert history[-1] == 2
    assert set(machine.run(count, 60)) == {2}


def test_tries_that_fail_become_rare():
    """One busy process takes a core: a single thread waits for nothing, a second one would."""
    machine, count = Machine(2), ThreadCount(2)
    machine.waiting = lambda threads: 0.7 if machine.busy and threads > 1 else 0.0
    machine.busy = 1
    history = machine.run(count, 200)
    tries = [i for i, now in enumerate(history) if now == 2]
    assert len(tries) <= 6 + 200 / LONGEST_PAUSE_S
    assert sum(history[-100:]) <= 101 + 1
    machine.busy = 0
    assert machine.run(count, LONGEST_PAUSE_S + 1)[-1] == 2


def test_a_short_disturbance_of_many_threads_costs_a_few():
    machine, count = Machine(64), ThreadCount(64)
    machine.busy = 8
    lowest = min(machine.run(count, 5))
    assert 40 <= lowest < 64
    machine.busy = 0
    assert machine.run(count, LONGEST_PAUSE_S + 5)[-1] == 64


def test_few_threads_of_a_large_machine_are_regained_in_growing_steps():
    machine, count = Machine(64), ThreadCount(64)
    machine.waiting = lambda threads: threads - 1.0
    machine.run(count, 1)
    assert count.now == 1
    machine.waiting = lambda threads: 0.0
    assert machine.run(count, 2)[-1] == 64


def test_a_little_waiting_changes_nothing():
    machine, count = Machine(2), ThreadCount(2)
    machine.waiting = lambda threads: 0.3
    assert set(machine.run(count, 10)) == {2}


def test_so_does_much_of_it_for_three_windows():
    machine, count = Machine(2), ThreadCount(2)
    for _ in range(10):
        for machine.busy in (2, 2, 2, 0):
            assert machine.run(count, WINDOW_S) == [2]


def test_a_try_has_one_window():
    machine, count = Machine(2), ThreadCount(2)
    machine.waiting = lambda threads: 0.7 if threads > 1 else 0.0
    history = machine.run(count, 60)
    fallen = history.index(1)
    assert all(after == 1 for now, after in pairwise(history[fallen:]) if now == 2)


def test_one_thread_stays_one():
    machine, count = Machine(1), ThreadCount(1)
    machine.busy = 5
    assert set(machine.run(count, 10)) == {1}


def test_steps_shorter_and_longer_than_a_window():
    for step_s in (0.003, 5.0):
        machine, count = Machine(2), ThreadCount(2)
        machine.busy = 2
        assert machine.run(count, 20 * step_s + 4 * WINDOW_S, step_s)[-1] == 1


def test_it_stays_within_its_bounds_whatever_happens():
    count, time_s = ThreadCount(random.randint(1, 9)), 0.0
    for _ in range(3000):
        time_s += WINDOW_S
        assert count.is_due(WINDOW_S)
        assert 1 <= count.judge(time_s, random.choice([0, 0, 0.05, 0.3, 2.0])) <= count.most
