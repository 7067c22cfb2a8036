"""The terminal's output while models load: a bar for each model, and the reason if one failed.

Logs, including those of the workers, are printed above the bars while these move.
"""

import os
import sys
import threading
from types import TracebackType
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from engine.contract.status import ModelStatus, Phase
from engine.version import __version__

_WORDS = {
    Phase.STARTING: "starting",
    Phase.DOWNLOADING: "fetching",
    Phase.LOADING: "loading",
    Phase.WARMING_UP: "warming up",
    Phase.RESTARTING: "restarting",
}


class StartScreen:
    """A context that shows the bars; they stay as they are when it ends. The reason of a failure is
    printed at once.

    Args:
        title: printed above the bars.
        console: rich's console for standard error. It uses no colours if NO_COLOR is set.
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
        """Show how far a model's loading is."""
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
                completed=min(status.progress or 0, 0.99),  # the clock stops at 1
                note=note if status.detail is None else status.detail,
            )

    def _explain(self, status: ModelStatus) -> None:
        """Print the reason of a failure, once and at once, above the bars: other models may still
        take minutes."""
        if status.model in self._explained:
            return
        self._explained.add(status.model)
        line = Text(f"{status.model}: ", style="bold red")
        line.append(status.news or "failed; see the log", style="default not bold")
        if status.failure is not None and status.failure.hint is not None:
            line.append(f"\n  {status.failure.hint}", style="default not bold")
        self._console.print(line, highlight=False)


class Terminal:
    """A context for the server's run: bars, our logs and the workers share standard error.

    Attributes:
        stderr: stream for our own logs. It writes to the current standard error, which rich
            replaces while bars move.
        workers_stderr: file descriptor for the workers, a pipe that a thread reads.
        has_colors: whether to colour log lines.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self.stderr: TextIO = cast(TextIO, _CurrentStderr())
        self.has_colors = not self._console.no_color
        self._source, self.workers_stderr = os.pipe()
        self._thread = threading.Thread(target=self._copy, name="worker-output", daemon=True)

    def start_screen(self, address: str) -> StartScreen:
        """Bars under a line that names the server."""
        return StartScreen(f"Tandem {__version__} on {address}", self._console)

    def __enter__(self) -> "Terminal":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Show the last output of the workers, which have ended or will not be waited for."""
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
