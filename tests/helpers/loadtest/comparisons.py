"""Runs comparisons of servers that need no model."""

import asyncio
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from loadtest.interrupt import Interrupt
from loadtest.launch import ServerCommand
from loadtest.session import Session

WORDS, PICTURES = (
    shlex.join([sys.executable, str(Path(__file__).with_name(program))])
    for program in ("word_server.py", "picture_server.py")
)


def server_at(port: int, command: str, name: str = "words", **fields: Any) -> ServerCommand:
    return ServerCommand(name, command, f"http://127.0.0.1:{port}/v1", "m", **fields)


def quiet_session(log_dir: Path, **hooks: Any) -> Session:
    """Make a session that nobody watches."""
    hooks = {"say": lambda line: None, "save": lambda document: None} | hooks
    return Session(seed=5, log_dir=log_dir, **hooks)


async def completed(comparison: Any) -> dict[str, Any]:
    """Run a comparison to its end and return its document."""
    async with Interrupt() as interrupt:
        await comparison.run(interrupt)
    return comparison.document


async def interrupted(make: Callable[[Callable[[], None]], Any]) -> Any:
    """Run the comparison that `make(interrupt)` gives until it interrupts itself, and return it."""
    running: list[Interrupt] = []
    comparison = make(lambda: running[0].fire())

    async def work() -> None:
        async with Interrupt() as interrupt:
            running.append(interrupt)
            await comparison.run(interrupt)

    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(work())
    assert comparison.document["partial"] is True
    return comparison


async def assert_stopped(*servers: ServerCommand) -> None:
    for server in servers:
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", urlsplit(server.url).port)
