"""Which workers have stopped, told by their pulses on a clock of the test's own."""

import os
import time

import pytest

from engine.processes.pulse import Pulse, PulseReader, send_pulses
from engine.processes.watchdog import LOADING_PATIENCE_S, Watchdog


class Bench:
    """A watchdog with ten seconds of patience, 100 with steps, and a worker of one pulse a tick."""

    def __init__(self):
        self.dog = Watchdog(worker_timeout_s=10, step_timeout_s=100)
        self.pulse = Pulse()

    def run(self, ticks, *, turns=0, outcomes=0, cpu_s=0.0, pulses=True, elapsed_s=1.0, **state):
        """The verdict, and after how many ticks."""
        state = {"is_ready": True, "is_busy": True} | state
        for tick in range(1, ticks + 1):
            if pulses:
                self.pulse = Pulse(
                    self.pulse.num_turns + turns,
                    self.pulse.num_outcomes + outcomes,
                    self.pulse.cpu_time_s + cpu_s,
                )
                self.dog.on_pulse(self.pulse)
            verdict = self.dog.tick(elapsed_s, **state)
            if verdict:
                return verdict, tick
        return None, ticks


@pytest.fixture
def bench():
    return Bench()


def test_a_worker_that_works_or_has_nothing_to_do_lives_for_ever(bench):
    assert bench.run(500, turns=3, outcomes=3, cpu_s=0.9)[0] is None
    assert bench.run(500, is_busy=False)[0] is None


@pytest.mark.parametrize("is_busy", [True, False])
def test_a_worker_without_pulses_has_stopped(bench, is_busy):
    verdict, ticks = bench.run(500, pulses=False, is_busy=is_busy)
    assert "no sign of life for 10 s" in verdict and ticks == 10


def test_a_loop_that_stands_still_while_requests_wait_has_stopped(bench):
    bench.run(500, is_busy=False)
    verdict, ticks = bench.run(500)
    assert "blocked for 10 s" in verdict and ticks == 10


@pytest.mark.parametrize("life", [{"cpu_s": 1e-4}, {"turns": 1}])
def test_a_long_step_lives_until_the_patience_with_steps_ends(bench, life):
    verdict, ticks = bench.run(500, **life)
    assert "no step has ended for 100 s" in verdict and ticks == 100


def test_a_step_that_ends_gives_the_next_one_all_the_time(bench):
    for _ in range(5):
        assert bench.run(98, cpu_s=1)[0] is None
        bench.run(1, cpu_s=1, outcomes=1)


def test_loading_may_be_silent_for_longer(bench):
    verdict, ticks = bench.run(500, pulses=False, is_ready=False, is_busy=False)
    assert "no sign of life" in verdict and ticks == LOADING_PATIENCE_S


def test_time_that_the_server_slept_does_not_count(bench):
    for _ in range(4):
        assert bench.run(1, pulses=False, elapsed_s=3600.0)[0] is None
        assert bench.run(1, turns=1)[0] is None
    assert bench.run(4, pulses=False, elapsed_s=3600.0)[0] is None


def test_pulses_come_over_a_pipe_and_tell_of_their_threads_time():
    reader, pulse = PulseReader(), Pulse(num_turns=1)
    assert reader.read() is None
    send_pulses(pulse, os.dup(reader.write_fd), period_s=0.01)
    first = wait_for(reader, lambda p: p.num_turns == 1)
    until_s = time.thread_time() + 0.05
    while time.thread_time() < until_s:
        pass
    pulse.num_turns, pulse.num_outcomes = 7, 3
    last = wait_for(reader, lambda p: p.num_turns == 7 and p.num_outcomes == 3)
    assert last.cpu_time_s >= first.cpu_time_s + 0.04
    time.sleep(0.1)
    still = wait_for(reader, lambda p: True)
    time.sleep(0.1)
    assert wait_for(reader, lambda p: True).cpu_time_s - still.cpu_time_s < 0.01
    reader.close()


def wait_for(reader, condition):
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        pulse = reader.read()
        if pulse is not None and condition(pulse):
            return pulse
        time.sleep(0.01)
    raise AssertionError("no such pulse came")


def test_pulses_that_nobody_reads_keep_the_worker_alive():
    """The pipe is full after a while; the newest pulse counts once somebody reads again."""
    reader = PulseReader()
    os.set_blocking(reader.write_fd, False)
    record = Pulse(5, 4, 3.0).pack()
    with pytest.raises(BlockingIOError):
        while True:
            os.write(reader.write_fd, record)
    assert reader.read() == Pulse(5, 4, 3.0)
    assert reader.read() is None
    reader.close()
