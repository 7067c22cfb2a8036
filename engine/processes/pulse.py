"""A worker's heartbeats: once a second it writes its loop's progress to a pipe.

A thread writes them, so they also come during a long step and while a model is loaded; they stop
when the process is stopped or cannot run Python code any more. Their content shows whether the loop
itself still works, which `engine.processes.watchdog` judges.
"""

import os
import struct
import threading
import time
from dataclasses import dataclass
from typing import Self

PERIOD_S = 1.0
_RECORD = struct.Struct("<qqd")


@dataclass(slots=True)
class Pulse:
    """The progress of a worker's loop. The loop's thread updates it, the pulse's thread reads
    it."""

    num_turns: int = 0
    """The number of iterations, with or without a result."""
    num_outcomes: int = 0
    """The number of steps with a result, and of pauses that the loop was told to make."""
    cpu_time_s: float = 0.0
    """The CPU time of the loop's thread: it grows within a step, but not while the thread waits."""

    def pack(self) -> bytes:
        return _RECORD.pack(self.num_turns, self.num_outcomes, self.cpu_time_s)

    @classmethod
    def unpack_last(cls, data: bytes) -> Self | None:
        """The newest of the records in `data`; None if there is none."""
        whole = len(data) - len(data) % _RECORD.size
        return cls(*_RECORD.unpack(data[whole - _RECORD.size : whole])) if whole else None


def send_pulses(pulse: Pulse, fd: int, period_s: float = PERIOD_S) -> None:
    """Write the state of `pulse` to a pipe as long as the process lives. The loop must run in the
    calling thread."""
    clock = time.pthread_getcpuclockid(threading.get_ident())

    def send() -> None:
        while True:
            pulse.cpu_time_s = time.clock_gettime(clock)
            try:
                os.write(fd, pulse.pack())
            except OSError:  # the server is gone
                return
            time.sleep(period_s)

    threading.Thread(target=send, name="pulse", daemon=True).start()


class PulseReader:
    """The server's end of the pipe. It never waits."""

    def __init__(self) -> None:
        self._fd, self.write_fd = os.pipe()
        os.set_blocking(self._fd, False)

    def read(self) -> Pulse | None:
        """The newest pulse, if one has come since the last call."""
        data = b""
        try:
            while piece := os.read(self._fd, 1 << 16):
                data += piece
        except BlockingIOError:
            pass
        return Pulse.unpack_last(data)

    def let_go(self) -> None:
        """Close the worker's end of the pipe, which the worker has inherited by now."""
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def close(self) -> None:
        self.let_go()
        os.close(self._fd)
