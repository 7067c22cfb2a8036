"""Fixtures of the text routes' tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from text_server import TextServer, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
async def server(tokenizer_folder: Path) -> AsyncIterator[TextServer]:
    """A server of one model, `org/tiny`."""
    server = TextServer(tokenizer_folder)
    async with server.client:
        yield server
