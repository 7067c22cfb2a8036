"""A server in memory for the commands, and a way to run them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from evaluation.commands import ServerAddress
from server.cli import app
from tests.helpers.evaluation.word_server import WordServer

Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def words(monkeypatch: pytest.MonkeyPatch) -> WordServer:
    """A server that every command of the test asks."""
    server = WordServer()
    monkeypatch.setattr(ServerAddress, "endpoint", lambda address: server.endpoint(address.api_key))
    return server


@pytest.fixture
def invoke() -> Invoke:
    """`invoke(*args)` → exit code, output, errors of `tandem eval`."""

    def call(*args: Any) -> tuple[int, str, str]:
        result = CliRunner().invoke(app, ["eval", *map(str, args)], env={"COLUMNS": "160"})
        assert result.exception is None or isinstance(result.exception, SystemExit), result
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """`written(name, *lines)` → a file of JSON lines."""

    def write(name: str, *lines: Any) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write
