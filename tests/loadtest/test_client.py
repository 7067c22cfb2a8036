import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from loadtest.client import CompletionClient, Target
from loadtest.record import RequestRecord
from loadtest.workload import PlannedRequest

PROMPT = "Use these words: one two three"

Send = Callable[..., Awaitable[RequestRecord]]


@pytest.fixture
async def send(fake_openai: Any) -> AsyncIterator[Send]:
    clients = []

    async def send_one(max_tokens: int = 5, **fields: Any) -> RequestRecord:
        client = CompletionClient(Target(**({"url": fake_openai.url, "model": "m"} | fields)))
        clients.append(client)
        record = RequestRecord(0, max_tokens)
        request = client.encode(PlannedRequest(0, PROMPT, max_tokens))
        await client.send(request, record, time.perf_counter())
        return record

    yield send_one
    for client in clients:
        client.close()


def answers(*parts: bytes, pause_s: float = 0.0) -> Callable[..., Awaitable[None]]:
    """A whole HTTP answer, written in parts."""

    async def answer(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


STREAM = b"HTTP/1.1 200 OK\r\n\r\n"  # no length: it ends with the connection
TEXT = b'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
@pytest.mark.parametrize("split", [0, 1, 7])
async def test_a_stream_is_read_whole(
    fake_openai: Any, send: Send, endpoint: str, split: int
) -> None:
    fake_openai.split = split
    record = await send(endpoint=endpoint)
    assert record.error is None
    assert len(record.text_s) == 5
    assert (record.prompt_tokens, record.output_tokens, record.cached_tokens) == (12, 5, 2)
    assert record.finish_reason == "length"
    assert record.status == 200
    assert record.end_s is not None
    assert record.text_s == sorted(record.text_s)
    assert record.end_s >= record.text_s[-1]


async def test_the_request_says_what_the_workload_means(fake_openai: Any, send: Send) -> None:
    await send(api_key="secret", extra_body={"top_k": 3})
    seen = fake_openai.seen[0]
    assert seen.path == "/v1/completions"
    assert seen.headers["authorization"] == "Bearer secret"
    assert seen.headers["connection"] == "close"
    assert seen.body == {
        "model": "m",
        "prompt": PROMPT,
        "max_tokens": 5,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
        "top_k": 3,
    }
    await send(endpoint="chat", ignore_eos=False, temperature=0.5)
    seen = fake_openai.seen[1]
    assert seen.path == "/v1/chat/completions"
    assert seen.body["messages"] == [{"role": "user", "content": PROMPT}]
    assert seen.body["temperature"] == 0.5
    assert "ignore_eos" not in seen.body


def test_models_take_turns() -> None:
    target = Target("http://h/v1", "m", models=("a", "b"))
    requests = [PlannedRequest(index, PROMPT, 1) for index in range(3)]
    assert [target.body(one)["model"] for one in requests] == ["a", "b", "a"]


async def test_chunks_are_timed(fake_openai: Any, send: Send) -> None:
    fake_openai.token_s = 0.03
    record = await send(max_tokens=4)
    assert record.ttft_s is not None
    assert record.ttft_s >= 0.03
    assert len(record.gaps_s) == 3
    assert record.text_s[-1] >= 4 * 0.03


async def test_only_text_counts_as_first_token(fake_openai: Any, send: Send) -> None:
    role = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
    text = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
    thought = b'data: {"choices": [{"delta": {"reasoning_content": "a"}}]}\n\n'
    parts = (STREAM + role, b": wait\n\n", thought + text, USAGE + DONE)
    fake_openai.answer = answers(*parts, pause_s=0.05)
    record = await send(endpoint="chat", max_tokens=1)
    assert record.error is None
    assert len(record.text_s) == 2
    assert record.text_s[0] >= 0.09


async def test_http_error(fake_openai: Any, send: Send) -> None:
    body = json.dumps({"error": {"message": "the queue is full", "code": "queue_full"}}).encode()
    head = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n" % len(body)
    fake_openai.answer = answers(head, body[:10], body[10:])
    record = await send()
    assert record.error == "HTTP 429: the queue is full"
    assert record.status == 429
    assert record.text_s == []


async def test_http_error_without_json_is_shortened(fake_openai: Any, send: Send) -> None:
    fake_openai.answer = answers(b"HTTP/1.1 500 No\r\n\r\n" + b"<html>\n" * 100)
    record = await send()
    assert record.error is not None
    assert record.error.startswith("HTTP 500: <html> <html>")
    assert len(record.error) < 250


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((STREAM, TEXT, USAGE), "stream ended without [DONE]"),
        ((STREAM, b'{"choices": [{"text": "a"}]}'), "stream ended without [DONE]: {"),
        ((STREAM,), "stream ended without [DONE]"),
        (
            (STREAM, TEXT, b'data: {"error": {"message": "engine died"}}\n\n', DONE),
            "error event: engine died",
        ),
        ((STREAM, b"data: {oops\n\n", TEXT, DONE), "malformed event: {oops"),
        ((STREAM, b"data: [1]\n\n", DONE), "malformed event: [1]"),
        ((STREAM, b'data: {"choices": [{"text": "a"}], "usage": {}}\n\n', TEXT, DONE), None),
        ((STREAM, b'data: {"choices": 3}\n\n', DONE), "malformed event"),
        ((b"",), "connection closed before the answer"),
        ((b"HTTP/1.1 200 OK\r\nContent-Le",), "connection closed before the answer"),
        (
            (b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n", TEXT),
            "connection closed within the answer",
        ),
        (
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\ndata"),
            "connection closed within the answer",
        ),
        ((b"SSH-2.0-OpenSSH\r\n\r\n",), "the answer is not HTTP"),
    ],
)
async def test_broken_answers_are_errors(
    fake_openai: Any, send: Send, parts: tuple[bytes, ...], error: str | None
) -> None:
    fake_openai.answer = answers(*parts)
    fake_openai.keep_alive = False
    record = await send()
    if error is None:
        assert record.error is None
    else:
        assert record.error is not None
        assert record.error.startswith(error)
    assert record.end_s is not None


async def test_timeout_keeps_what_arrived(fake_openai: Any, send: Send) -> None:
    fake_openai.token_s = 0.03
    record = await send(max_tokens=1000, timeout_s=1.0)
    assert record.error == "timeout after 1 s"
    assert 1 <= len(record.text_s) <= 34
    assert record.output_tokens is None


async def test_nobody_listens(unused_tcp_port: int, send: Send) -> None:
    record = await send(url=f"http://127.0.0.1:{unused_tcp_port}/v1")
    assert record.error is not None
    assert record.error.startswith("cannot connect: ")


@pytest.mark.parametrize(("keep_alive", "num_connections"), [(True, 1), (False, 3)])
async def test_connections(fake_openai: Any, keep_alive: bool, num_connections: int) -> None:
    client = CompletionClient(Target(fake_openai.url, "m", keep_alive=keep_alive))
    request = client.encode(PlannedRequest(0, PROMPT, 2))
    for index in range(3):
        record = RequestRecord(index, 2)
        await client.send(request, record, time.perf_counter())
        assert record.error is None
    client.close()
    assert fake_openai.num_connections == num_connections


async def test_a_closed_idle_connection_is_not_reused(fake_openai: Any) -> None:
    fake_openai.keep_alive = False  # closes, although the client asked to keep
    client = CompletionClient(Target(fake_openai.url, "m", keep_alive=True))
    request = client.encode(PlannedRequest(0, PROMPT, 2))
    for index in range(3):
        record = RequestRecord(index, 2)
        await client.send(request, record, time.perf_counter())
        assert record.error is None
        await asyncio.sleep(0.02)
    client.close()
    assert fake_openai.num_connections == 3


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host/v1", "http://", ""])
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError):
        CompletionClient(Target(url, "m"))
