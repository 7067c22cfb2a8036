"""Ends processes that a test process started once that process has ended: by itself, by Ctrl-C or
by SIGKILL (Linux).

`watch()` marks this process's environment, which its children inherit, and starts a watcher:
`python leftovers.py MARK`. The watcher's standard input closes when nobody holds the other end any
more.
"""

import contextlib
import os
import signal
import sys
import time
import uuid
from pathlib import Path

VARIABLE = "STARTED_BY_TEST_PROCESS"
PROC = Path("/proc")
LONGEST_S = 10.0


def watch() -> None:
    """Start the watcher; to be called once. Without /proc it does nothing."""
    if not PROC.is_dir():
        return
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    # Only this process holds the writing end, until it ends.
    reading, _ = os.pipe()
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-IS", __file__, mark],
        # Without the mark of a parent test process, which may end first.
        {name: value for name, value in os.environ.items() if name != VARIABLE},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, reading, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,  # out of reach of Ctrl-C
    )
    os.close(reading)
    os.environ[VARIABLE] = mark


def marked(mark: str) -> list[int]:
    """Return the processes that were started with this mark, by any process."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def end(mark: str) -> None:
    """Kill all processes with this mark, again and again until none is left: one may have started
    another meanwhile."""
    deadline_s = time.monotonic() + LONGEST_S
    while (pids := marked(mark)) and time.monotonic() < deadline_s:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end(sys.argv[1])
