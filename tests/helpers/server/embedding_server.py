"""A server over an engine that embeds or scores, with a real tokenizer, for the tests of its
routes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from engine.contract.whole_texts import WholeTextsInfo
from server.app import create_app
from server.settings import Settings
from tests.helpers.server.fake_embedding_engine import (
    FakeEmbeddingEngine,
    embedding_info,
    reranker_info,
)
from tests.helpers.server.text_server import text_info, until

MAX_MODEL_LEN = 64


class EmbeddingServer:
    """An app over models `embedder` and, if asked for, `writer`."""

    make_info: Callable[..., WholeTextsInfo] = staticmethod(embedding_info)

    def __init__(self, folder: Path, *, with_text: bool = False, **settings: Any) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        infos = [self.make_info(path=str(folder), max_model_len=MAX_MODEL_LEN)]
        texts = [text_info(folder, "writer")] if with_text else []
        self.engine = FakeEmbeddingEngine(*texts, *infos)
        given = Settings(**settings)
        self.engine.config_of_server = given.engine
        self.app = create_app(given, self.engine)
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=True)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://test")

    def ids(self, text: str) -> list[int]:
        """Encode a text, with the token that the tokenizer adds in front."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    async def embed(self, **body: Any) -> httpx.Response:
        return await self.client.post("/v1/embeddings", json={"input": "the fox"} | body)

    async def refused(self, status: int = 400, **body: Any) -> dict[str, Any]:
        """Return the error, which must have the usual shape."""
        response = await self.embed(**body)
        assert response.status_code == status, response.text
        assert response.json().keys() == {"error"}
        error: dict[str, Any] = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        return error

    async def in_flight(self, path: str, **body: Any) -> "asyncio.Task[httpx.Response]":
        """Send a request and wait until the engine has it; on hold, the engine does not answer."""
        before = len(self.engine.embedding_requests)
        task = asyncio.create_task(self.client.post(path, json=body))
        await until(lambda: len(self.engine.embedding_requests) > before)
        return task

    def value(self, name: str, **labels: str) -> float | None:
        registry = self.app.state.tandem.metrics.registry
        return registry.get_sample_value(
            f"tandem_embedding_{name}", {"model_name": "embedder", **labels}
        )

    async def aclose(self) -> None:
        await self.app.state.tandem.texts.aclose()
        await self.client.aclose()


class RerankerServer(EmbeddingServer):
    """An app over a reranker, `ranker`."""

    make_info = staticmethod(reranker_info)
