"""What a terminal shows while models load: a bar for each, and why one failed.

Logs, the workers' too, are printed above the bars as long as these move.
"""

import os
import sys
import threading
from types import TracebackType
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from engine.types import ModelStatus, Phase
from engine.version import __version__

_WORDS = {
    Phase.STARTING: "starting",
    Phase.DOWNLOADING: "fetching",
    Phase.LOADING: "loading",
    Phase.WARMING_UP: "warming up",
    Phase.RESTARTING: "starting again",
}


class StartScreen:
    """A context: the bars stay as they are when it ends. Why a model failed is said at once.

    Args:
        title: printed above the bars.
        console: of standard error. Colours are rich's business: none where NO_COLOR is set.
    """

    def __init__(self, title: str, console: Console) -> None:
        self._title = title
        self._console = console
        self._progress = Progress(
            TextColumn("{task.fields[sign]}"),
            TextColumn("{task.fields[model]}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._explained: set[str] = set()

    def __enter__(self) -> "StartScreen":
        self._console.print(self._title, markup=False, highlight=False)
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def show(self, status: ModelStatus) -> None:
        """Move the model's bar to how far loading is."""
        task = self._tasks.get(status.model)
        if task is None:
            task = self._tasks[status.model] = self._progress.add_task(
                "", total=None, model=status.model, sign=" ", note=""
            )
        if status.phase is Phase.READY:
            self._progress.update(task, total=1, completed=1, sign="[green]✓[/]", note="ready")
            self._progress.stop_task(task)
        elif status.phase is Phase.STOPPED:
            self._progress.update(task, total=1, completed=0, note="unloaded")
            self._progress.stop_task(task)
        elif status.phase is Phase.FAILED:
            self._progress.update(task, total=1, completed=0, sign="[red]✗[/]", note="failed")
            self._progress.stop_task(task)
            self._explain(status)
        else:
            note = _WORDS.get(status.phase, status.phase.value)
            self._progress.update(
                task,
                total=None if status.progress is None else 1,
                completed=min(status.progress or 0, 0.99),  # the clock stops at the whole
                note=note if status.detail is None else status.detail,
            )

    def _explain(self, status: ModelStatus) -> None:
        """At once and once, above the bars: others may take minutes yet."""
        if status.model in self._explained:
            return
        self._explained.add(status.model)
        line = Text(f"{status.model}: ", style="bold red")
        line.append(status.news or "failed; see the log", style="default not bold")
        if status.failure is not None and status.failure.hint is not None:
            line.append(f"\n  {status.failure.hint}", style="default not bold")
        self._console.print(line, highlight=False)


class Terminal:
    """A context around the server's run: standard error shared by bars, our logs and the workers.

    Attributes:
        stderr: for our own logs. Standard error as it is when it is written to: while bars move,
            rich stands in for it.
        workers_stderr: file descriptor for the workers, a pipe that a thread reads.
        has_colors: whether log lines are to be coloured.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self.stderr: TextIO = cast(TextIO, _CurrentStderr())
        self.has_colors = not self._console.no_color
        self._source, self.workers_stderr = os.pipe()
        self._thread = threading.Thread(target=self._copy, name="worker-output", daemon=True)

    def start_screen(self, address: str) -> StartScreen:
        """Bars under one line that names the server."""
        return StartScreen(f"Tandem {__version__} on {address}", self._console)

    def __enter__(self) -> "Terminal":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """The workers have ended, or will not be waited for: show what they wrote last."""
        os.close(self.workers_stderr)
        self._thread.join(timeout=1.0)

    def _copy(self) -> None:
        with open(self._source, "rb") as lines:
            for line in lines:
                self.stderr.write(line.decode(errors="replace"))
                self.stderr.flush()


class _CurrentStderr:
    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr.isatty()
