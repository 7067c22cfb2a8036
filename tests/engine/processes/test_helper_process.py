"""A process that may be lost over a question: the next one starts anew, nobody is left behind."""

import asyncio
import gc
import os
import random
import signal
import sys
import threading
import time

import psutil
import pytest

from engine.processes.helper_process import HelperLost, HelperProcess
from engine.processes.own_packages import HOME

_ECHO = f"""
import os, sys, time
sys.path.insert(0, {str(HOME)!r})
from engine.processes.helper_child import FRAME, serve
def answer(head, body):
    print("what libraries print goes elsewhere", flush=True)
    if body == b"exit":
        os._exit(7)
    if body == b"sleep":
        if head:
            open(head, "w").close()
        time.sleep(600)
    if body == b"other":
        os.write(0, FRAME.pack(99, 0, 0))
    return head, str(os.getpid()).encode() if body == b"who" else body[::-1]
serve(answer)
"""


def helper() -> HelperProcess:
    return HelperProcess([sys.executable, "-c", _ECHO])


def ask(
    process: HelperProcess, body: bytes, wall_s: float, head: bytes = b""
) -> tuple[bytes, bytes]:
    return process.running().ask(head, body, wall_s)


def pid_of(process: HelperProcess) -> int:
    return int(ask(process, b"who", 60)[1])


def test_questions_are_answered_whatever_their_size():
    process = helper()
    for num_bytes in (0, 1, random.randrange(1 << 22)):
        body = random.randbytes(num_bytes)
        head, answer = ask(process, body, 60, b"head")
        assert (head, answer) == (b"head", body[::-1])
    process.close()


@pytest.mark.parametrize(
    ("body", "wall_s", "exit_codes", "is_late"),
    [
        (b"exit", 60, {7}, False),
        (b"sleep", 0.1, {-signal.SIGKILL}, True),
        (b"other", 60, {-signal.SIGKILL, 0}, False),
    ],
)
def test_a_process_that_is_lost_leaves_nothing_and_another_is_started(
    body, wall_s, exit_codes, is_late
):
    """It ended, was late, or answered another question."""
    process = helper()
    before = psutil.Process().num_fds()
    first = pid_of(process)
    with pytest.raises(HelperLost) as caught:
        ask(process, body, wall_s)
    assert caught.value.exit_code in exit_codes and caught.value.is_late == is_late
    assert not psutil.pid_exists(first)
    assert pid_of(process) != first
    process.close()
    process.close()
    assert psutil.Process().num_fds() == before


def test_anybody_may_kill_it_over_a_question_or_when_it_is_idle(tmp_path):
    process = helper()
    process.kill()
    first = pid_of(process)
    is_asked = tmp_path / "asked"

    def kill_once_asked():
        while not is_asked.exists():
            time.sleep(0.01)
        process.kill()

    killer = threading.Thread(target=kill_once_asked)
    killer.start()
    with pytest.raises(HelperLost) as caught:
        ask(process, b"sleep", 60, bytes(is_asked))
    killer.join()
    assert (caught.value.exit_code, caught.value.is_late) == (-signal.SIGKILL, False)
    running = process.running()
    process.kill()
    while running.is_alive:
        time.sleep(0.01)
    assert pid_of(process) not in (first, running.process_id)
    process.close()


def test_one_that_cannot_be_started_leaves_nothing():
    before = psutil.Process().num_fds()
    with pytest.raises(OSError):
        HelperProcess(["/no/such/program"]).running()
    assert psutil.Process().num_fds() == before


def test_it_ends_with_whoever_held_it():
    process = helper()
    pid = pid_of(process)
    os.kill(pid, 0)
    del process
    gc.collect()
    assert not psutil.pid_exists(pid)


async def test_time_in_which_this_process_stood_still_is_not_held_against_the_other_one():
    process = helper()
    running = process.running()
    os.kill(running.process_id, signal.SIGSTOP)
    answers = []
    asking = asyncio.create_task(running.ask_all([b"head"], 0.6, answers.append))
    await asyncio.sleep(0.05)
    time.sleep(1.0)  # noqa: ASYNC251 - as if this process was stopped, too
    os.kill(running.process_id, signal.SIGCONT)
    await asking
    assert answers == [b"head"]
    process.close()


def test_a_clock_that_jumps_is_not_held_against_the_other_process(monkeypatch):
    process, jump_s = helper(), 0.0
    now = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: now() + jump_s)
    running = process.running()
    os.kill(running.process_id, signal.SIGSTOP)

    def stand_still():
        nonlocal jump_s
        jump_s = 600.0
        os.kill(running.process_id, signal.SIGCONT)

    threading.Timer(0.3, stand_still).start()
    assert running.ask(b"head", b"body", 20.0) == (b"head", b"ydob")
    process.close()
