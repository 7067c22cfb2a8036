"""Prometheus counts exactly what the clients were told."""

import asyncio
import random

import httpx
import pytest

pytestmark = pytest.mark.e2e
COUNTERS = ("tandem_prompt_tokens_total", "tandem_generation_tokens_total")


async def test_token_counters_equal_the_sum_of_the_usages(server):
    rng = random.Random(random.randrange(1 << 32))
    before = [server.metric(name, model_name="tiny") for name in COUNTERS]
    finished_before = server.metric("tandem_request_success_total", model_name="tiny")

    def body():
        return {
            "model": "tiny",
            "prompt": [rng.randrange(2, 400) for _ in range(rng.randrange(1, 120))],
            "max_tokens": rng.randrange(1, 60),
            "n": rng.choice([1, 1, 1, 3]),
            "stop": rng.choice([None, "e", ["the", "a"]]),
            "stream": False,
        }

    async with httpx.AsyncClient(timeout=60) as client:
        url = f"{server.url}/v1/completions"
        bodies = [body() for _ in range(40)]
        responses = await asyncio.gather(*(client.post(url, json=b) for b in bodies))
    usages = [response.json()["usage"] for response in responses]
    after = [server.metric(name, model_name="tiny") for name in COUNTERS]
    assert after[0] - before[0] == sum(u["prompt_tokens"] for u in usages)
    assert after[1] - before[1] == sum(u["completion_tokens"] for u in usages)
    finished = server.metric("tandem_request_success_total", model_name="tiny")
    assert finished - finished_before == sum(b["n"] for b in bodies)
