"""Requests made to take long where everybody waits. Each is answered, and the watch over the server
(`stalls`) finds nothing that held others up, in its event loop or between two steps."""

import httpx
import pytest

from tests.helpers.long_bodies import TO_ANSWER, TO_EMBED, written
from tests.helpers.models.tiny_encoders import make_encoder

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(start_shared_server, tiny_llama, tmp_path_factory):
    """A random encoder `embedder` that reads 256 tokens, and a random text model `tiny` that reads
    8192."""
    embedder = make_encoder(tmp_path_factory.mktemp("embedder"), max_position_embeddings=256)
    models = (f"embedder={embedder}", f"tiny={tiny_llama(max_position_embeddings=8192)}")
    return start_shared_server(*(word for model in models for word in ("--model", model)))


@pytest.mark.parametrize("name", TO_EMBED)
def test_texts_to_embed_hold_nobody_up(server, name):
    path, body = TO_EMBED[name]()
    _ask(server, path, {"model": "embedder", **body})


@pytest.mark.parametrize("name", TO_ANSWER)
def test_texts_to_answer_hold_nobody_up(server, name):
    path, body = TO_ANSWER[name]()
    _ask(server, path, {"model": "tiny", "max_tokens": 3, **body})


@pytest.mark.parametrize("path", ["/openapi.json", "/metrics", "/docs", "/v1/models"])
def test_pages_hold_nobody_up(server, path):
    for _ in range(2):
        assert httpx.get(server.url + path, timeout=60).status_code == 200
    assert server.new_stalls() == []


def _ask(server, path, body):
    response = httpx.post(
        server.url + path,
        content=written(body),
        headers={"Content-Type": "application/json"},
        timeout=300,
    )
    assert response.status_code in (200, 400), response.text
    assert server.new_stalls() == []
