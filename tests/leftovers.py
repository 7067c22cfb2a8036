"""Ends what a test process started once that has ended: by itself, by Ctrl-C, by SIGKILL (Linux).

`watch()` marks this process's environment, which whatever it starts inherits, and starts a watcher:
`python leftovers.py MARK`, whose standard input closes when nobody is left to hold the other end.
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
    """Call it once. Without a /proc to find processes by it does nothing."""
    if not PROC.is_dir():
        return
    mark = f"{os.getpid()}-{uuid.uuid4().hex}"
    # The end to write to stays open, and here alone, until this process ends.
    reading, _ = os.pipe()
    os.posix_spawn(
        sys.executable,
        [sys.executable, "-IS", __file__, mark],
        # Without the mark of a test process that started this one and may end first.
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
    """Processes that were started with this mark, by whomever."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone, or somebody else's
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def end(mark: str) -> None:
    """Kill them; again, as long as there are any: one may have started another meanwhile."""
    deadline_s = time.monotonic() + LONGEST_S
    while (pids := marked(mark)) and time.monotonic() < deadline_s:
        for pid in pids:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


if __name__ == "__main__":
    sys.stdin.buffer.read()
    end(sys.argv[1])
