"""Reads a message that is typed, perhaps on several lines, with the lines of earlier chats."""

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_PROMPT, _MORE = "> ", ". "
_FENCE = '"""'
_MAX_KEPT = 1000
"""The most lines that a history holds."""

Complete = Callable[[str], Sequence[str]]
"""Returns what the text at the beginning of a line may become."""


class MessageLines:
    """The messages that are typed on a terminal.

    Args:
        history: the file with the lines of earlier chats; None keeps none.
        complete: what the tab key offers.
    """

    def __init__(self, history: Path | None, complete: Complete) -> None:
        self._readline = _readline()
        self._history = history
        self._num_kept = 0
        if self._readline is not None:
            _offer(self._readline, complete)
            self._recall()

    def read(self) -> str:
        """A message. Lines that end with a backslash, or stand between two marks of three quotes,
        belong together. An interrupt between them drops the message.

        Raises:
            EOFError: there is no more input.
            KeyboardInterrupt: at the first line.
        """
        line = input(_PROMPT)
        self._keep()
        try:
            if line.lstrip().startswith(_FENCE):
                return self._fenced(line.lstrip().removeprefix(_FENCE))
            while line.endswith("\\"):
                line = f"{line[:-1]}\n{self._more()}"
        except (KeyboardInterrupt, EOFError):
            print("\n[The message was dropped.]")  # noqa: T201
            return ""
        return line

    def _fenced(self, text: str) -> str:
        while not text.rstrip().endswith(_FENCE):
            text = f"{text}\n{self._more()}"
        return text.rstrip().removesuffix(_FENCE).strip("\n")

    def _more(self) -> str:
        line = input(_MORE)
        self._keep()
        return line

    def _recall(self) -> None:
        """Read the history, and give its file to its owner alone."""
        if self._history is None:
            return
        with contextlib.suppress(OSError):
            self._history.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._history, os.O_WRONLY | os.O_CREAT, 0o600))
            self._history.chmod(0o600)
            self._readline.read_history_file(self._history)
            if self._readline.get_current_history_length() > _MAX_KEPT:
                self._readline.set_history_length(_MAX_KEPT)
                self._readline.write_history_file(self._history)
        self._num_kept = self._readline.get_current_history_length()

    def _keep(self) -> None:
        """Write the new line at once: a terminal may be closed at any time, and several chats may
        share the file."""
        if self._readline is None or self._history is None:
            return
        count = self._readline.get_current_history_length()
        if count > self._num_kept:
            with contextlib.suppress(OSError):
                self._readline.append_history_file(count - self._num_kept, self._history)
        self._num_kept = count


def _readline() -> Any:
    """The module that gives input() editing and a history; None where Python lacks it."""
    try:
        import readline
    except ImportError:
        return None
    return readline


def _offer(readline: Any, complete: Complete) -> None:
    def offer(text: str, index: int) -> str | None:
        whole = readline.get_line_buffer()[: readline.get_endidx()]
        found = complete(whole) if readline.get_begidx() == 0 or " " in whole else ()
        matching = [one for one in found if one.startswith(text)]
        return matching[index] if index < len(matching) else None

    readline.set_completer_delims(" ")
    readline.set_completer(offer)
    readline.parse_and_bind("tab: complete")
