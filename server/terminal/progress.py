"""The progress of a separate process: a line on a terminal's standard error."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import Progress

from engine.contract.host import Tell


@contextmanager
def progress_line() -> Iterator[Tell]:
    """A function that shows messages: `phase`, `progress` and `detail` while a model is found or
    loaded, then `passage`, `of` and the `perplexity` so far."""
    console = Console(stderr=True, markup=False, highlight=False)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)

        def tell(message: Mapping[str, Any]) -> None:
            if "passage" in message:
                line = f"passage {message['passage']}/{message['of']}"
                line += f", perplexity {message['perplexity']:.3f}"
                done, total = float(message["passage"]), message["of"]
            else:
                line = message["detail"] or message["phase"]
                done = message["progress"] or 0.0
                total = None if message["progress"] is None else 1.0
            progress.update(task, description=line, completed=done, total=total)

        yield tell
