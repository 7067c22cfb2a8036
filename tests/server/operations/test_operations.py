"""Every operation is listed, cancelled, admitted, counted and closed in the same way."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.helpers.server.embedding_server import EmbeddingServer, RerankerServer
from tests.helpers.server.fake_server import answer_of, error_of, until
from tests.helpers.server.image_server import ImageServer, MattingServer, data_url, png
from tests.helpers.server.listening import listening
from tests.helpers.server.text_server import MODEL, TextServer
from tests.helpers.server.upscaling_server import UpscalingServer

PICTURE = {"image": data_url(png())}
ONE_PLACE = {
    "max_queued_requests": 0,
    "max_queued_images": 0,
    "engine": {"max_num_seqs": 1, "max_num_images": 1},
}


class Operation(NamedTuple):
    """A request of `num` items; its id begins with `prefix`."""

    make: Callable[..., Any]
    kind: str
    path: str
    prefix: str
    num: int
    body: dict[str, Any]

    @property
    def counter(self) -> str:
        """The counter of its outcomes."""
        items = "inputs" if self.kind in ("embedding", "reranker") else "images"
        return f"tandem_{self.kind}_{items}_total"


def embedding(path: str, prefix: str, num: int, **body: Any) -> Operation:
    return Operation(EmbeddingServer, "embedding", path, prefix, num, body)


def reranker(path: str, prefix: str, num: int, **body: Any) -> Operation:
    return Operation(RerankerServer, "reranker", path, prefix, num, body)


def image(server: Any, kind: str, path: str, prefix: str, num: int = 1, **body: Any) -> Operation:
    def make(folder: Path, **settings: Any) -> Any:
        return server(**settings)

    return Operation(make, kind, f"/v1/images/{path}", prefix, num, body)


OPERATIONS = [
    embedding("/v1/embeddings", "embd", 3, input=["the", "fox", "jumps"]),
    embedding("/pooling", "pool", 2, input=["the", "fox"]),
    embedding("/v1/rerank", "rerank", 3, query="the", documents=["fox", "jumps"]),
    embedding("/v1/score", "score", 2, text_1="the", text_2=["fox"]),
    reranker("/v1/rerank", "rerank", 2, query="the", documents=["fox", "jumps"]),
    reranker("/v1/score", "score", 1, text_1="the", text_2=["fox"]),
    embedding("/v1/groundedness", "ground", 2, answer="The fox jumps.", passages=["A fox."]),
    embedding("/embedding", "embd", 1, content="the fox"),
    embedding("/api/embed", "embd", 1, input="the fox"),
    embedding("/api/embeddings", "embd", 1, prompt="the fox"),
    image(ImageServer, "image", "generations", "img", 2, prompt="x", n=2),
    image(ImageServer, "image", "generations", "img", prompt="x", stream=True),
    image(ImageServer, "image", "edits", "img", prompt="x", **PICTURE),
    image(UpscalingServer, "upscale", "upscale", "upscale", **PICTURE, stream=True),
    image(UpscalingServer, "upscale", "upscale", "upscale", **PICTURE),
    image(MattingServer, "matting", "matte", "matte", **PICTURE),
]
A1111 = Operation(
    lambda folder, **settings: ImageServer(**settings),
    "image",
    "/sdapi/v1/txt2img",
    "img",
    1,
    {"prompt": "x"},
)
KINDS = list({operation.kind: operation for operation in OPERATIONS}.values())
"""One operation of each kind."""


def each(operations: list[Operation]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("operation", operations, ids=lambda found: found.path)


class Held:
    """A server whose engine has a request but does not answer it."""

    def __init__(self, operation: Operation, folder: Path) -> None:
        self.operation = operation
        self.server = operation.make(folder, **ONE_PLACE)
        self.client: httpx.AsyncClient = self.server.client
        self.state = self.server.state
        self.submitted: list[str] = []
        submit = self.server.engine.submit

        def submit_and_note(request: Any) -> Any:
            stream = submit(request)
            self.submitted.append(request.request_id)
            return stream

        self.server.engine.submit = submit_and_note
        self.server.engine.hold()

    async def ask(self, client: httpx.AsyncClient, url: str = "") -> "asyncio.Task[Any]":
        sending = client.post(url + self.operation.path, json=self.operation.body)
        task = asyncio.create_task(sending)
        await until(lambda: bool(self.submitted))
        return task

    async def listed(self) -> list[dict[str, Any]]:
        data: list[dict[str, Any]] = (await self.client.get("/v1/requests")).json()["data"]
        return data

    async def check_cancelled(self) -> None:
        assert self.server.engine.aborted == self.submitted
        assert self.state.admission.num_requests == 0
        labels = {"model_name": self.server.engine.statuses()[0].model}
        value = self.state.metrics.registry.get_sample_value
        ended = [
            value(self.operation.counter, labels | {"outcome": outcome})
            for outcome in ("cancelled", "completed", "failed")
        ]
        assert ended == [self.operation.num, 0, 0]
        await self.check_job("cancelled")

    async def check_job(self, status: str) -> None:
        if self.operation.kind == "image":
            job = await self.client.get(f"/v1/images/{self.submitted[0]}")
            assert job.json()["status"] == status


@pytest.fixture
async def held(operation: Operation, tokenizer_folder: Path) -> AsyncIterator[Held]:
    found = Held(operation, tokenizer_folder)
    yield found
    found.server.engine.release()


@each(OPERATIONS)
async def test_it_is_listed_and_cancelled(held: Held, operation: Operation) -> None:
    task = await held.ask(held.client)
    [found] = await held.listed()
    assert (found["id"], found["kind"]) == (held.submitted[0], operation.kind)
    assert found["id"].startswith(f"{operation.prefix}-")
    assert (found["n"], found["num_finished"]) == (operation.num, 0)
    assert (found["progress"] is None) == ("inputs" in operation.counter)
    assert found["prompt_tokens"] is None
    assert found["model"] == held.server.engine.statuses()[0].model
    by = random.choice(["id", "request_id"])
    response = await held.client.delete(f"/v1/requests/{found[by]}")
    assert [one["status"] for one in response.json()["data"]] == ["cancelled"]
    answer = await task
    # A stream that had not begun is refused like any other request.
    assert answer.status_code in ([200, 499] if operation.body.get("stream") else [499])
    assert "the request was cancelled by its id" in answer.text
    await held.check_cancelled()
    assert await held.listed() == []


@each([*KINDS, A1111])
async def test_a_client_that_leaves_ends_it(held: Held) -> None:
    async with listening(held.server.app) as url, httpx.AsyncClient(timeout=60) as client:
        task = await held.ask(client, url)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: held.state.admission.num_requests == 0)
        await until(lambda: bool(held.server.engine.aborted))
    await held.check_cancelled()


@each(KINDS)
async def test_a_full_queue_is_a_429(held: Held, operation: Operation) -> None:
    task = await held.ask(held.client)
    refused = await held.client.post(operation.path, json=operation.body)
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert len(held.submitted) == 1
    held.server.engine.release()
    assert (await task).status_code == 200


@each(KINDS)
async def test_a_worker_that_dies_or_a_server_that_drains_is_a_503(
    held: Held, operation: Operation
) -> None:
    task = await held.ask(held.client)
    held.server.engine.kill_worker()
    answer = await task
    assert answer.status_code == (200 if operation.body.get("stream") else 503)
    assert "engine_dead" in answer.text or "ended unexpectedly" in answer.text
    assert held.state.admission.num_requests == 0
    await held.check_job("failed")
    held.state.lifecycle.begin_drain()
    draining = await held.client.post(operation.path, json=operation.body)
    assert (draining.status_code, "shutting down" in draining.text) == (503, True)


@each(KINDS)
async def test_it_asks_for_a_key_and_for_post(operation: Operation, tokenizer_folder: Path) -> None:
    server = operation.make(tokenizer_folder, api_keys=["secret"])
    assert (await server.client.post(operation.path, json=operation.body)).status_code == 401
    headers = {"Authorization": "Bearer secret"}
    assert (await server.client.get(operation.path, headers=headers)).status_code == 405


async def test_it_is_cancelled_before_the_engine_has_it(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wait(*args: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr("server.operations.embed.token_ids", wait)
    held = Held(OPERATIONS[0], tokenizer_folder)
    task = asyncio.create_task(held.client.post("/v1/embeddings", json=held.operation.body))
    await until(lambda: bool(held.state.live_requests.of(None)))
    [found] = await held.listed()
    await held.client.delete(f"/v1/requests/{found['id']}")
    assert error_of(await task, 499)["message"] == "the request was cancelled by its id"
    await held.check_cancelled()


HELLO = [{"role": "user", "content": "hi"}]
TEXTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HELLO, "n": 2},
    "/v1/completions": {"prompt": [[5], [6], [7]], "max_tokens": 200},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": HELLO, "max_tokens": 200},
    "/api/chat": {"messages": HELLO},
}
"""The routes that write texts, with a request each."""


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", TEXTS)
async def test_a_client_that_leaves_ends_its_texts_at_once(
    tokenizer_folder: Path, path: str, stream: bool
) -> None:
    server = TextServer(tokenizer_folder)
    server.say("a" * 200)
    server.engine.delay_s = 0.01
    state, engine = server.state, server.engine
    async with server.listening() as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        task = asyncio.create_task(client.post(path, json=TEXTS[path] | {"stream": stream}))
        await until(lambda: len(engine.live) == (3 if path == "/v1/completions" else 1))
        assert len((await client.get("/v1/requests")).json()["data"]) == 1
        await asyncio.sleep(0.03)
        task.cancel()
        await until(lambda: not engine.live)
        assert {request.request_id for request in engine.requests} == set(engine.aborted)
        await until(server.is_idle)
        assert len(state.responses) == 0
        labels = {"model_name": MODEL, "finished_reason": "abort"}
        aborts = state.metrics.registry.get_sample_value("tandem_request_success_total", labels)
        assert aborts == sum(request.sampling.n for request in engine.requests)
        answer_of(await client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}))
