"""Requests made to take long where everybody waits: none keeps the event loop busy for long, as the
watch over it (`stalls`) finds."""

import asyncio
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.app import build_routes
from tests.helpers import stalls
from tests.helpers.long_bodies import TO_ANSWER, TO_EMBED, Body, written
from tests.helpers.server.embedding_server import EmbeddingServer
from tests.helpers.server.text_server import text_info


@pytest.fixture
def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    path = tmp_path / "findings"
    monkeypatch.setenv(stalls.VARIABLE, str(path))
    callbacks = list(gc.callbacks)
    gc.disable()  # a test process has much more to walk than a server
    yield lambda: stalls.findings(path)
    gc.enable()
    gc.callbacks[:] = callbacks


@pytest.fixture
async def server(tokenizer_folder: Path) -> EmbeddingServer:
    """A server of `embedder`, and of `writer`, which takes long texts. Both have been asked."""
    server = EmbeddingServer(tokenizer_folder, with_text=True)
    server.engine.serve(text_info(tokenizer_folder, "writer", max_model_len=1 << 17))
    build_routes(server.app)
    assert (await server.embed(model="embedder")).status_code == 200
    hi = {"model": "writer", "prompt": "hi", "max_tokens": 1}
    assert (await server.post("/v1/completions", **hi)).status_code == 200
    return server


@pytest.mark.parametrize(("bodies", "model"), [(TO_EMBED, "embedder"), (TO_ANSWER, "writer")])
async def test_no_request_keeps_the_event_loop_busy(
    server: EmbeddingServer,
    found: Callable[[], list[str]],
    bodies: dict[str, Callable[[], tuple[str, Body]]],
    model: str,
) -> None:
    def asked(make: Callable[[], tuple[str, Body]]) -> tuple[str, bytes]:
        path, body = make()
        return path, written({"model": model, "max_tokens": 3, **body})

    stalls.StallWatch("test").loop(asyncio.get_running_loop())
    for name, make in bodies.items():
        path, content = await asyncio.to_thread(asked, make)
        headers = {"Content-Type": "application/json"}
        response = await server.client.post(path, content=content, headers=headers)
        assert response.status_code in (200, 400), (name, response.text)
        await asyncio.sleep(0)
        assert found() == [], name


async def test_no_page_keeps_the_event_loop_busy(
    server: EmbeddingServer, found: Callable[[], list[str]]
) -> None:
    stalls.StallWatch("test").loop(asyncio.get_running_loop())
    await asyncio.sleep(0)
    for path in ("/openapi.json", "/openapi.json", "/metrics", "/docs", "/v1/models"):
        assert (await server.client.get(path)).status_code == 200
        await asyncio.sleep(0)
        assert found() == [], path
