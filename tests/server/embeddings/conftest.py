"""Servers of an embedding model."""

from pathlib import Path

import pytest

from tests.helpers.server.embedding_server import EmbeddingServer


@pytest.fixture
async def server(tokenizer_folder: Path) -> EmbeddingServer:
    """A server of one model, `embedder`."""
    return EmbeddingServer(tokenizer_folder)


@pytest.fixture
async def both(tokenizer_folder: Path) -> EmbeddingServer:
    """A server of `embedder` beside a text model, `writer`."""
    return EmbeddingServer(tokenizer_folder, with_text=True)
