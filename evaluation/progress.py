"""The progress of a run on standard error: a bar on a terminal, otherwise a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 15.0

Advance = Callable[[int, int], None]
"""Called with how many are done, and how many of them failed."""


@contextmanager
def shown_progress(what: str, total: int) -> Iterator[Advance]:
    """A function that shows how far the work is."""
    console = Console(stderr=True, markup=False, highlight=False)
    if not console.is_terminal:
        yield _lines(console, what, total)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)

        def advance(done: int, failed: int) -> None:
            progress.update(task, description=_described(what, failed), completed=done)

        yield advance


def _lines(console: Console, what: str, total: int) -> Advance:
    shown_at = time.monotonic()

    def advance(done: int, failed: int) -> None:
        nonlocal shown_at
        if done == total or time.monotonic() - shown_at >= LINE_EVERY_S:
            shown_at = time.monotonic()
            console.print(f"{_described(what, failed)}: {done} of {total}")

    return advance


def _described(what: str, failed: int) -> str:
    return f"{what} ({failed} failed)" if failed else what
