"""A server over an engine that embeds or scores, with a real tokenizer, for the tests of its
routes."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from tokenizers import Tokenizer

from engine.contract.whole_texts import WholeTextsInfo
from tests.helpers.server.fake_embeddings import embedding_info, reranker_info
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.fake_server import FakeServer, error_of, until
from tests.helpers.server.text_server import text_info

MAX_MODEL_LEN = 64


class EmbeddingServer(FakeServer):
    """An app over models `embedder` and, if asked for, `writer`."""

    make_info: Callable[..., WholeTextsInfo] = staticmethod(embedding_info)
    metrics = ("tandem_embedding", "embedder")

    def __init__(self, folder: Path, *, with_text: bool = False, **settings: Any) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        info = self.make_info(path=str(folder), max_model_len=MAX_MODEL_LEN)
        texts = [text_info(folder, "writer")] if with_text else []
        super().__init__(FakeEngine(*texts, info), **settings)

    @property
    def whole_texts(self) -> list[Any]:
        """The requests so far that embed or score."""
        texts = self.engine.requests_for("generate")
        return [request for request in self.engine.requests if request not in texts]

    def ids(self, text: str) -> list[int]:
        """Encode a text, with the token that the tokenizer adds in front."""
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids

    async def embed(self, **body: Any) -> httpx.Response:
        return await self.post("/v1/embeddings", **{"input": "the fox"} | body)

    async def refused(self, status: int = 400, **body: Any) -> dict[str, Any]:
        """Return the error, which must have the usual shape."""
        return error_of(await self.embed(**body), status)

    async def in_flight(self, path: str, **body: Any) -> "asyncio.Task[httpx.Response]":
        """Send a request and wait until the engine has it; on hold, the engine does not answer."""
        before = len(self.whole_texts)
        task = asyncio.create_task(self.post(path, **body))
        await until(lambda: len(self.whole_texts) > before)
        return task


class RerankerServer(EmbeddingServer):
    """An app over a reranker, `ranker`."""

    make_info = staticmethod(reranker_info)
