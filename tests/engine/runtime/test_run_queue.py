"""Adding up what threads waited for a core."""

import pytest

from engine.runtime.run_queue import RunQueue


@pytest.fixture
def tasks(tmp_path):
    return tmp_path


def set_waited(tasks, thread, nanoseconds):
    (tasks / thread).mkdir(exist_ok=True)
    (tasks / thread / "schedstat").write_text(f"123456 {nanoseconds} 7\n")


def test_what_was_waited_since_the_last_call(tasks):
    set_waited(tasks, "10", 5_000_000_000)
    set_waited(tasks, "11", 0)
    queue = RunQueue(tasks)
    assert queue.waited_s() == 0.0
    set_waited(tasks, "10", 5_250_000_000)
    set_waited(tasks, "11", 500_000_000)
    assert queue.waited_s() == 0.75
    assert queue.waited_s() == 0.0


def test_threads_come_and_go(tasks):
    set_waited(tasks, "10", 0)
    set_waited(tasks, "11", 9_000_000_000)
    queue = RunQueue(tasks)
    (tasks / "11" / "schedstat").unlink()
    set_waited(tasks, "12", 100_000_000)
    assert queue.waited_s() == 0.1


def test_a_system_that_does_not_count(tasks):
    assert not RunQueue(tasks / "nowhere").is_counted
    (tasks / "10").mkdir()
    assert not RunQueue(tasks).is_counted
    (tasks / "10" / "schedstat").write_text("")
    queue = RunQueue(tasks)
    assert not queue.is_counted
    assert queue.waited_s() == 0.0


def test_this_process():
    queue = RunQueue()
    assert queue.waited_s() >= 0.0
