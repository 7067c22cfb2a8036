"""What `loadtest swaps` counts, against a server that loses, changes and unloads on purpose."""

import asyncio
import json
import random
from collections.abc import AsyncIterator

import pytest

from loadtest.swaps import Order, Swapper, orders


class SwappingServer:
    """Answers everything after the first requests wrongly, and every fifth request not at all."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.is_loaded = False

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        body = b""
        if head.startswith("GET"):
            self.is_loaded = not self.is_loaded
            value = "loaded" if self.is_loaded else "sleeping"
            body = json.dumps({"data": [{"id": "m", "status": {"value": value}}]}).encode()
        else:
            self.num_asked += 1
            if self.num_asked % 5:
                text = "a" if self.num_asked <= 1 else "b"
                chunk = {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
                body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n".encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
        writer.write(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
        writer.close()


@pytest.fixture
async def url() -> AsyncIterator[str]:
    server = await asyncio.start_server(SwappingServer().connection, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


async def test_lost_and_different_answers_and_loads_are_counted(url: str) -> None:
    run = await Swapper(url, [Order("m", "text", {"prompt": "p"})]).measure(
        3, 1.5, [], random.Random()
    )
    assert run.requests["m"] >= 5
    assert len(run.lost) == (run.requests["m"] + 1) // 5
    assert run.num_different == run.requests["m"] - len(run.lost)
    assert run.loads["m"] >= 2 and len(run.cold_s) + len(run.warm_s) == run.num_different
    assert f"| {run.requests['m']} | {len(run.lost)} |" in run.to_table()


def test_each_model_gets_its_requests() -> None:
    found = orders(["a", "b=embedding", "c=image"], random.Random())
    assert {(one.model, one.kind) for one in found} == {
        ("a", "text"),
        ("b", "embedding"),
        ("c", "image"),
    }
    with pytest.raises(ValueError, match="'video' is no kind"):
        orders(["a=video"], random.Random())
