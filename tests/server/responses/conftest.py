"""OpenAI's own client in front of the server in memory."""

from collections.abc import Iterator

import openai
import pytest

from tests.helpers.server.text_server import TextServer


@pytest.fixture
def client(server: TextServer) -> Iterator[openai.AsyncOpenAI]:
    """OpenAI's client. It is not closed here, because that would close the server's client."""
    yield openai.AsyncOpenAI(
        base_url="http://test/v1", api_key="unused", max_retries=0, http_client=server.client
    )
