"""What `loadtest swaps` counts, against a server that loses, changes and unloads on purpose."""

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loadtest.machine import provenance
from loadtest.swap_report import swaps_section
from loadtest.swaps import Order, Swapper, load_swap_plan, orders

SCENARIOS = Path("loadtest/scenarios")


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
    swapper = Swapper(url, [Order("m", "text", {"prompt": "p"})])
    await swapper.learn()
    run = await swapper.measure(3, 1.5, os.getpid(), random.Random())
    num_asked = len(run.rows) + 1
    num_lost = sum("lost" in row for row in run.rows)
    assert len(run.rows) >= 5 and num_lost == num_asked // 5
    assert sum("differs" in row for row in run.rows) == len(run.rows) - num_lost
    assert run.loads["m"] >= 2 and abs(run.loads["m"] - run.evictions["m"]) <= 1
    assert run.peak_mib > run.peak_models_mib
    entry = {"server": "one", "cpu": {"others": 0.125}, **run.to_json()}
    document = {
        **provenance("swaps", "Swaps"),
        "models": ["m"],
        "users": 3,
        "seconds": 1.5,
        "budget_mib": 64,
        "servers": [{"name": "one", "command": "exec one"}],
        "runs": [entry],
    }
    section = swaps_section(document)
    differing = len(run.rows) - num_lost
    assert f"| one | {len(run.rows)} | {num_lost} | {differing} | {run.loads['m']} |" in section
    assert "at most 12.5% of the CPU" in section and "Budget for the models: 64 MiB" in section
    assert ("- one, lost: " in section) == (num_lost > 0)


async def test_a_first_answer_that_does_not_come_ends_the_run(url: str) -> None:
    swapper = Swapper(url, [Order("m", "text", {"prompt": "p"})] * 5)
    with pytest.raises(RuntimeError, match=r"^m: the stream ended too early"):
        await swapper.learn()


def test_each_model_gets_its_requests() -> None:
    found = orders(["a", "b=embedding", "c=image", "d=enlarge"], random.Random())
    assert {(one.model, one.kind) for one in found} == {
        ("a", "text"),
        ("b", "embedding"),
        ("c", "image"),
        ("d", "enlarge"),
    }
    with pytest.raises(ValueError, match="'video' is no kind"):
        orders(["a=video"], random.Random())


def test_the_projects_own_plans_load() -> None:
    texts = load_swap_plan(SCENARIOS / "swaps.yaml", {"MODELS_DIR": "/x"})
    assert [len(texts.servers), len(texts.models), texts.seconds] == [2, 4, 240]
    assert texts.only(["tandem"]).servers == texts.servers[:1]
    kinds = load_swap_plan(SCENARIOS / "swaps-kinds.yaml")
    assert len({one.kind for one in orders(kinds.models, random.Random())}) == 4
