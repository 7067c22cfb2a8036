"""Nothing that a test starts outlives the test process."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import leftovers

pytestmark = pytest.mark.skipif(not leftovers.PROC.is_dir(), reason="processes are found in /proc")

CONFTEST = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from tests.helpers import leftovers
leftovers.watch()
"""
HANGS = """
import os, subprocess, time
from pathlib import Path

def test_that_starts_processes():
    # In a session of its own, and orphaned by the shell between.
    servers = "sleep 600 & echo $! > {folder}/orphan; exec sleep 600"
    server = subprocess.Popen(["sh", "-c", servers], start_new_session=True)
    orphan = Path("{folder}/orphan")
    while not (orphan.exists() and orphan.read_text().endswith("\\n")):
        time.sleep(0.01)
    Path("{folder}/both").write_text(orphan.read_text() + f" {{server.pid}}")
    {then}
"""


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(condition, timeout_s=120.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture
def start_tests(tmp_path):
    """`start_tests(then)` → a test process, and what a test of it has started before it did so."""
    pids: list[int] = []

    def start(then):
        (tmp_path / "conftest.py").write_text(CONFTEST)
        (tmp_path / "test_it.py").write_text(HANGS.format(folder=tmp_path, then=then))
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", "."]
        # Whoever runs tests in the background may have had SIGINT ignored.
        heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        # Plugins would take three quarters of the time.
        env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        process = subprocess.Popen([*command, "test_it.py"], cwd=tmp_path, env=env, preexec_fn=heed)
        pids.append(process.pid)
        until((tmp_path / "both").exists)
        until((tmp_path / "both").read_text)
        started = [int(pid) for pid in (tmp_path / "both").read_text().split()]
        pids.extend(started)
        return process, started

    yield start
    for pid in filter(is_running, pids):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_end_with_a_killed_test_process(start_tests, number):
    process, started = start_tests("time.sleep(600)")
    assert len(started) == 2 and all(map(is_running, started))
    process.send_signal(number)
    process.wait(120)
    until(lambda: not any(map(is_running, started)))


def test_they_end_with_a_test_process_that_is_through(start_tests):
    process, started = start_tests("")
    assert process.wait(120) == 0
    until(lambda: not any(map(is_running, started)))


def test_this_test_process_is_watched():
    watchers = [
        pid
        for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        if leftovers.__file__.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    ]
    assert len(watchers) == 1
    assert os.getpid() not in leftovers.marked(os.environ[leftovers.VARIABLE])
