"""Single keys from a terminal."""

import contextlib
import termios
import tty
from collections.abc import Iterator


@contextlib.contextmanager
def unbuffered(terminal: int) -> Iterator[int]:
    """A terminal that gives each character at once and does not show it."""
    before = termios.tcgetattr(terminal)
    tty.setcbreak(terminal, termios.TCSANOW)
    try:
        yield terminal
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
