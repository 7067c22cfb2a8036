"""A process that may be lost over a question: the next one starts anew, nobody is left behind."""

import gc
import os
import random
import signal
import sys
import threading

import psutil
import pytest

from engine.processes.helper_process import HelperLost, HelperProcess
from engine.processes.own_packages import HOME

_ECHO = f"""
import os, sys, time
sys.path.insert(0, {str(HOME)!r})
from engine.helper_process import own_pipes, read_frame, write_frame
questions, answers = own_pipes()
print("what libraries print goes elsewhere")
while True:
    head, body = read_frame(questions)
    if body == b"exit":
        os._exit(7)
    if body == b"sleep":
        time.sleep(600)
    write_frame(answers, head, str(os.getpid()).encode() if body == b"who" else body[::-1])
"""


def helper() -> HelperProcess:
    return HelperProcess([sys.executable, "-c", _ECHO])


def pid_of(process: HelperProcess) -> int:
    return int(process.ask(None, b"who", 60)[1])


def test_questions_are_answered_whatever_their_size() -> None:
    process = helper()
    for num_bytes in (0, 1, random.randrange(1 << 22)):
        body = random.randbytes(num_bytes)
        head, answer = process.ask({"number": num_bytes}, body, 60)
        assert (head, answer) == (b'{"number":%d}' % num_bytes, body[::-1])
    process.close()


def test_a_process_that_ends_is_lost_and_the_next_question_starts_another() -> None:
    process = helper()
    first = pid_of(process)
    with pytest.raises(HelperLost) as caught:
        process.ask(None, b"exit", 60)
    assert (caught.value.exit_code, caught.value.is_late) == (7, False)
    assert pid_of(process) != first
    process.close()


def test_one_that_is_late_is_killed() -> None:
    process = helper()
    first = pid_of(process)
    with pytest.raises(HelperLost) as caught:
        process.ask(None, b"sleep", 0.1)
    assert (caught.value.exit_code, caught.value.is_late) == (-signal.SIGKILL, True)
    assert not psutil.pid_exists(first)


def test_anybody_may_kill_it_over_a_question() -> None:
    process = helper()
    pid_of(process)
    timer = threading.Timer(0.1, process.kill)
    timer.start()
    with pytest.raises(HelperLost) as caught:
        process.ask(None, b"sleep", 60)
    assert (caught.value.exit_code, caught.value.is_late) == (-signal.SIGKILL, False)
    pid_of(process)
    process.close()
    process.close()
    process.kill()


def test_it_ends_with_whoever_held_it() -> None:
    process = helper()
    pid = pid_of(process)
    os.kill(pid, 0)
    del process
    gc.collect()
    assert not psutil.pid_exists(pid)
