"""Servers of an embedding model."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.helpers.server.embedding_server import EmbeddingServer


@pytest.fixture
async def server(tokenizer_folder: Path) -> AsyncIterator[EmbeddingServer]:
    """A server of one model, `embedder`."""
    server = EmbeddingServer(tokenizer_folder)
    yield server
    await server.aclose()


@pytest.fixture
async def both(tokenizer_folder: Path) -> AsyncIterator[EmbeddingServer]:
    """A server of `embedder` beside a text model, `writer`."""
    server = EmbeddingServer(tokenizer_folder, with_text=True)
    yield server
    await server.aclose()
