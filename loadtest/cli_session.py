"""Sessions of commands: lines of progress go to the terminal, results into a file."""

from pathlib import Path
from typing import Any

from rich.console import Console

from loadtest.results import keeping
from loadtest.scenario import random_seed
from loadtest.session import Session

_console = Console(highlight=False)


def session_of(
    document: dict[str, Any], output: Path | None, *, seed: int | None, log_dir: Path
) -> Session:
    """The session of a command that fills `document` and saves it as `output`, if given."""
    return Session(
        seed=random_seed() if seed is None else seed,
        log_dir=log_dir,
        say=say,
        save=keeping(document, output),
    )


def say(line: str) -> None:
    """Print a line without markup."""
    _console.print(line, markup=False, soft_wrap=True)
