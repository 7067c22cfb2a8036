"""A program in a pseudo-terminal, typed into as by a person."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

_PATIENCE_S = 300.0
"""Machines that run tests may be busy with much else."""
ROWS, COLUMNS = 40, 100


class PseudoTerminal:
    """One program, run by this Python with the given arguments.

    Attributes:
        output: all that it has written.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        pixels: tuple[int, int] = (0, 0),
        **env: str,
    ) -> None:
        self._own, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, *pixels))
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("TANDEM_", "TERM", "TMUX"))
        }
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=folder,
            env={**kept, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2]), **env},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.output = ""
        self._read = 0

    def type(self, text: str) -> None:
        os.write(self._own, text.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C once it waits for something, which five looks must show: it also waits for
        the terminal while readline writes its prompt, and then Python would see the signal only at
        the next key, as it does for a person who is that quick."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        waiting = 0
        while waiting < 5:
            is_running = stat.read_text().rpartition(")")[2].split()[0] == "R"
            waiting = 0 if is_running else waiting + 1
            time.sleep(0.01)
        self.type("\x03")

    def expect(self, pattern: str, timeout_s: float = _PATIENCE_S) -> str:
        """Wait until new output matches; returns the new output up to the end of the match."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.output[self._read :], re.DOTALL)):
            left_s = deadline_s - time.monotonic()
            is_more = left_s > 0 and self._take(left_s)
            assert is_more, f"no {pattern!r} in {self.output[self._read :]!r}"
        start, self._read = self._read, self._read + found.end()
        return self.output[start : self._read]

    def wait(self, timeout_s: float = _PATIENCE_S) -> int:
        """Wait for its end. Returns the exit code."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0 and self._take(left_s):
            pass
        return self.process.wait(max(1.0, deadline_s - time.monotonic()))

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._own)

    def _take(self, timeout_s: float) -> bool:
        """Read what is there; False at the end or after the time."""
        if not select.select([self._own], [], [], timeout_s)[0]:
            return False
        try:
            data = os.read(self._own, 1 << 16)
        except OSError:  # Linux's way to say that the other side is closed
            return False
        self.output += data.decode(errors="replace")
        return bool(data)
