"""Shows a server's readings one after the other, or one of them."""

import contextlib
import os
import select
import sys
import time
from collections.abc import Callable, Iterator

import httpx
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from server.settings import ClientSettings
from server.terminal.client import ServerProblem, open_client
from server.terminal.keys import unbuffered
from server.terminal.top.reading import Reading, read
from server.terminal.top.view import view

_INTERVAL_S = 1.0
_PIPE_CELLS = 160
"""The width of lines in a pipe."""

IsLeft = Callable[[float], bool]
"""Waits that many seconds, or until q is typed; returns whether it was."""


def top_command(settings: ClientSettings, *, once: bool) -> int:
    """Show readings until the user quits, or only one. Returns the exit code: 1 if no server
    answers."""
    is_live = not once and sys.stdout.isatty()
    with open_client(settings) as client:
        try:
            first = read(client)
            if is_live:
                _show_live(client, settings.url, first)
            else:
                time.sleep(_INTERVAL_S)
                _print(settings.url, first, read(client))
        except ServerProblem as problem:
            typer.echo(f"tandem: {problem}", err=True)
            return 1
        except KeyboardInterrupt:
            return 0 if is_live else 130
    return 0


def _print(url: str, before: Reading, now: Reading) -> None:
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=_PIPE_CELLS)
    console.print(view(url, before, now, None))


def _show_live(client: httpx.Client, url: str, now: Reading) -> None:
    """Readings until q is typed. While the server does not answer, the last one stays."""
    before, problem = None, None
    console = Console(highlight=False, markup=False)
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as is_left:
        while True:
            leave = Text("\nq leaves", style="dim")
            live.update(Group(view(url, before, now, problem), leave), refresh=True)
            if is_left(_INTERVAL_S):
                return
            try:
                before, now, problem = now, read(client), None
            except ServerProblem as error:
                problem = str(error)


@contextlib.contextmanager
def _keys() -> Iterator[IsLeft]:
    if not sys.stdin.isatty():
        yield lambda wait_s: _is_q(None, wait_s)
        return
    with unbuffered(sys.stdin.fileno()) as terminal:
        yield lambda wait_s: _is_q(terminal, wait_s)


def _is_q(terminal: int | None, wait_s: float) -> bool:
    """Wait so long for a q, or for the terminal's end."""
    end_s = time.monotonic() + wait_s
    while (left_s := end_s - time.monotonic()) > 0:
        readable, _, _ = select.select([] if terminal is None else [terminal], [], [], left_s)
        if terminal is not None and readable and os.read(terminal, 1) in (b"q", b"Q", b""):
            return True
    return False
