"""A tiny OpenAI-compatible server, one connection per request or kept alive, with faults, and a
tokenizer in a GGUF file."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"


def event(payload: Any) -> bytes:
    text = payload if isinstance(payload, str) else json.dumps(payload, ensure_ascii=False)
    return f"data: {text}\n\n".encode()


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def text_event(text: str, finish_reason: str | None = None, *, chat: bool = False) -> bytes:
    content = {"delta": {"content": text}} if chat else {"text": text}
    return event({"choices": [{"index": 0, **content, "finish_reason": finish_reason}]})


def usage_event(prompt_tokens: int, completion_tokens: int, cached: int = 0) -> bytes:
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    return event({"choices": [], "usage": usage})


@dataclass
class SeenRequest:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    at: float
    connection: int


@dataclass
class FakeOpenAI:
    """Streams `max_tokens` words, `token_s` apart, and reports word counts as its usage.

    `answer` replaces the whole answer: it gets the body and the writer.
    """

    port: int = 0
    token_s: float = 0.0
    fixed_tokens: int = 9
    keep_alive: bool = True
    split: int = 0  # write the answer in segments of so many bytes
    answer: Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]] | None = None
    seen: list[SeenRequest] = field(default_factory=list)
    arrival: asyncio.Event = field(default_factory=asyncio.Event)
    num_connections: int = 0
    num_disconnected: int = 0
    in_flight: int = 0
    max_in_flight: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def wait_for_requests(self, count: int) -> None:
        """Return when `count` requests have arrived."""
        async with asyncio.timeout(20):
            while len(self.seen) < count:
                self.arrival.clear()
                await self.arrival.wait()

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        number = self.num_connections
        try:
            while await self._exchange(reader, writer, number):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.num_disconnected += 1
        finally:
            writer.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> bool:
        start = await reader.readline()
        if not start:
            return False
        headers = {}
        while (line := (await reader.readline()).strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        path = start.split()[1].decode()
        self.seen.append(SeenRequest(path, headers, body, time.perf_counter(), number))
        self.arrival.set()
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await (self.answer or self.stream)(body, writer)
            await writer.drain()
        finally:
            self.in_flight -= 1
        return self.keep_alive and headers.get("connection") != "close"

    async def stream(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        chat = "messages" in body
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        num_words = len(prompt.split(": ", 1)[1].split())
        writer.write(HEAD + b"\r\n")
        if chat:
            role = {"choices": [{"index": 0, "delta": {"role": "assistant"}}]}
            await self.write(writer, event(role))
        for i in range(body["max_tokens"]):
            if self.token_s:
                await asyncio.sleep(self.token_s)
            last = i == body["max_tokens"] - 1
            await self.write(writer, text_event(" wörd", "length" if last else None, chat=chat))
        await self.write(writer, usage_event(self.fixed_tokens + num_words, body["max_tokens"], 2))
        await self.write(writer, event("[DONE]"))
        await self.send(writer, b"0\r\n\r\n")

    async def write(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        await self.send(writer, chunked(data))

    async def send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        step = self.split or len(data)
        for start in range(0, len(data), step):
            writer.write(data[start : start + step])
            await writer.drain()
            if self.split:
                await asyncio.sleep(0)


@pytest.fixture
async def fake_openai() -> AsyncIterator[FakeOpenAI]:
    fake = FakeOpenAI()
    server = await asyncio.start_server(fake.connection, "127.0.0.1", 0)
    fake.port = server.sockets[0].getsockname()[1]
    yield fake
    server.close()


@pytest.fixture(scope="package")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "t.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(300)])
    writer.add_token_types([1] * 300)
    writer.add_token_merges(["a b", "b c"])
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_tensor("unused", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
