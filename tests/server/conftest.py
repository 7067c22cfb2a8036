"""Fixtures of the server's tests."""

from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from text_server import TextServer, write_tokenizer


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    """What the test logged, in place of output. structlog's own console would print the local
    values of tracebacks, which takes seconds."""
    with structlog.testing.capture_logs() as lines:
        yield lines


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
async def server(tokenizer_folder: Path) -> AsyncIterator[TextServer]:
    """A server of one model, `org/tiny`."""
    server = TextServer(tokenizer_folder)
    yield server
    await server.aclose()
