"""The official client in front of the server in memory."""

from collections.abc import Iterator

import openai
import pytest
from text_server import TextServer


@pytest.fixture
def client(server: TextServer) -> Iterator[openai.AsyncOpenAI]:
    """Closing it would close the server's own client, which is the server's to close."""
    yield openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="unused", max_retries=0, http_client=server.client
    )
