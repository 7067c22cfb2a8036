"""How long a prompt takes to its first token when another server of this machine has computed it,
beside computing it."""

import asyncio
import json
import random
import secrets
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from engine.contract.model_spec import DEFAULT_MODELS
from kernels.machine import cpu_name
from loadtest.launch import ServerCommand, free_port, launched

NUM_PROMPTS = 3
LENGTHS = (500, 1500, 6000)
NUM_TOKENS = 8
"""The tokens of an answer."""
_TOKEN_IDS = range(100, 40_000)
Body = dict[str, Any]


def measure() -> list[dict[str, Any]]:
    """Start two servers that exchange blocks over TCP, then two that share a folder in memory."""
    rows = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        key = Path(folder) / "key"
        key.write_text(secrets.token_hex(32))
        ways = {
            "TCP": f"--kv-transfer 127.0.0.1 --kv-transfer-key {key}",
            "a folder in /dev/shm": f"--kv-store {folder}/store",
        }
        for way, options in ways.items():
            for row in asyncio.run(_pair(options, Path(folder))):
                rows.append({"machine": cpu_name(), "by": way} | row)
                print(rows[-1], flush=True)
    return rows


async def _pair(options: str, folder: Path) -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        urls: list[str] = []
        for name in ("prefiller", "decoder"):
            port = free_port()
            urls.append(f"http://127.0.0.1:{port}/v1")
            command = f"{sys.executable} -m server serve --port {port} {options}"
            command += f" --model {DEFAULT_MODELS[0]}"
            server = ServerCommand(name, command, urls[-1], DEFAULT_MODELS[0])
            await stack.enter_async_context(launched(server, folder / f"{name}.log"))
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=300))
        rows = []
        for length in LENGTHS:
            rows.append(await _length(client, urls[0], urls[1], length))
            print(rows[-1], flush=True)
        return rows


async def _length(
    client: httpx.AsyncClient, prefiller: str, decoder: str, length: int
) -> dict[str, Any]:
    found: dict[str, list[float]] = {"computed_s": [], "imported_s": [], "prefill_s": []}
    for number in range(NUM_PROMPTS + 1):
        prompt = random.choices(_TOKEN_IDS, k=length)
        body = {"prompt": prompt, "max_tokens": NUM_TOKENS, "temperature": 0, "ignore_eos": True}
        expected, computed_s = await _timed(client, decoder, body | {"cache_salt": "alone"})
        started_s = time.perf_counter()
        params = {"do_remote_decode": True}
        answer = await client.post(
            f"{prefiller}/completions",
            json=body | {"max_tokens": 1, "kv_transfer_params": params},
        )
        prefill_s = time.perf_counter() - started_s
        params = answer.raise_for_status().json()["kv_transfer_params"]
        text, imported_s = await _timed(client, decoder, body | {"kv_transfer_params": params})
        if text != expected:
            raise RuntimeError("the texts differ")
        if number:  # the first one of a length warms up
            for name, value in zip(found, (computed_s, imported_s, prefill_s), strict=True):
                found[name].append(value)
    return {"prompt_tokens": length} | {name: round(median(s), 3) for name, s in found.items()}


async def _timed(client: httpx.AsyncClient, url: str, body: Body) -> tuple[str, float]:
    """The text, and the seconds to its first token."""
    started_s, first_s, text = time.perf_counter(), None, ""
    async with client.stream("POST", f"{url}/completions", json=body | {"stream": True}) as lines:
        async for line in lines.raise_for_status().aiter_lines():
            if line.startswith("data: {"):
                first_s = first_s or time.perf_counter() - started_s
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
    assert first_s is not None
    return text, first_s
