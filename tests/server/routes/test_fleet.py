"""What routers and benchmarks of other servers ask: tokens of prompts, limits, loads, a reset."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.contract.generate import EngineStats
from engine.version import __version__
from tests.helpers.server.fake_images import image_info
from tests.helpers.server.fake_server import answer_of, assert_refused
from tests.helpers.server.text_server import MODEL, TextServer, text_info

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def words(rng: random.Random) -> str:
    return " ".join(rng.choice(["fox", "dog", "wizard"]) for _ in range(rng.randint(1, 20)))


async def test_a_rendered_chat_is_what_the_model_reads(server: TextServer) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    for fields in (
        {},
        {"add_generation_prompt": False},
        {"chat_template_kwargs": {"mood": "x"}},
        {"truncate_prompt_tokens": rng.randint(1, 6)},
        {"add_special_tokens": True},
    ):
        messages = [{"role": "user", "content": words(rng)} for _ in range(rng.randint(1, 3))]
        body: dict[str, Any] = {"messages": messages, "max_tokens": 2, **fields}
        rendered = answer_of(await server.post(f"{CHAT}/render", **body))
        assert server.engine.requests == [], "nothing is generated"
        answer_of(await server.chat(**body))
        read = server.engine.requests.pop()
        assert rendered["token_ids"] == read.prompt_token_ids, f"seed {seed}"
        assert rendered["model"] == MODEL and rendered["request_id"].startswith("chatcmpl-")


async def test_rendered_prompts_are_what_the_model_reads(server: TextServer) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    ids = [[rng.randrange(2, 400) for _ in range(rng.randint(1, 9))] for _ in range(3)]
    for prompt in (words(rng), [words(rng), words(rng)], ids[0], ids):
        for fields in ({}, {"truncate_prompt_tokens": 1}, {"add_special_tokens": False}):
            rendered = answer_of(
                await server.post(f"{COMPLETIONS}/render", prompt=prompt, **fields)
            )
            assert server.engine.requests == []
            answer_of(await server.complete(prompt=prompt, max_tokens=1, **fields))
            read = sorted(server.engine.requests, key=lambda request: request.request_id)
            server.engine.requests.clear()
            assert [one["token_ids"] for one in rendered] == [
                request.prompt_token_ids for request in read
            ], f"seed {seed}"
            assert {one["model"] for one in rendered} == {MODEL}


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_what_cannot_be_generated_is_not_rendered(server: TextServer, path: str) -> None:
    long = "fox " * 300
    body = {"messages": [{"role": "user", "content": long}]} if path == CHAT else {"prompt": long}
    param = next(iter(body))
    assert_refused(await server.post(f"{path}/render", **body), param, "maximum context length")
    unknown = await server.post(f"{path}/render", **body, model="nobody")
    assert unknown.status_code == 404


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_what_is_too_long_is_refused_in_the_same_words(server: TextServer, path: str) -> None:
    statuses = set()
    for length in [1, 200, 300, *random.sample(range(200, 260), 9)]:
        text = "fox " * length
        prompt = (
            {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
        )
        body = {**prompt, "max_tokens": random.choice([1, 20])}
        rendered = await server.post(f"{path}/render", **body)
        answered = await server.post(path, **body)
        statuses.add(rendered.status_code)
        assert rendered.status_code == answered.status_code, length
        if rendered.status_code == 400:
            assert rendered.json() == answered.json(), length
    assert statuses == {200, 400}


async def test_limits_and_loads_in_sglangs_words(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, name, num_kv_blocks=32) for name in ("one", "two")]
    server = TextServer(tokenizer_folder, *infos, engine={"max_num_seqs": 8})
    stats = EngineStats(
        num_running=2,
        num_waiting=3,
        num_steps=1,
        kv_blocks_total=32,
        kv_blocks_used=8,
        kv_block_size=16,
        prefix_cache_queries=100,
        prefix_cache_hits=25,
    )
    server.engine.publish("two", stats)
    found = answer_of(await server.client.get("/v1/loads?include=core"))
    age = datetime.now(UTC) - datetime.fromisoformat(found["timestamp"])
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert (found["version"], found["dp_rank_count"]) == (__version__, 2)
    idle, busy = found["loads"]
    assert busy == {
        "model": "two",
        "dp_rank": 1,
        "num_running_reqs": 2,
        "num_waiting_reqs": 3,
        "num_total_reqs": 5,
        "num_used_tokens": 128,
        "max_total_num_tokens": 512,
        "token_usage": 0.25,
        "cache_hit_rate": 0.25,
        "utilization": 0.25,
        "max_running_requests": 8,
    }
    assert (idle["model"], idle["num_total_reqs"], idle["token_usage"]) == ("one", 0, 0)

    assert (await server.client.get("/server_info")).status_code == 400, "two are served"
    for path in ("/server_info", "/get_server_info"):
        assert answer_of(await server.client.get(f"{path}?model=two")) == {
            "model_path": "two",
            "served_model_name": "two",
            "tokenizer_path": "two",
            "weight_version": "",
            "version": __version__,
            "context_length": infos[0].max_model_len,
            "max_total_tokens": 512,
            "max_running_requests": 8,
            "page_size": 16,
            "tp_size": 1,
            "dp_size": 1,
        }


async def test_what_may_be_profiled_is(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, name) for name in ("one", "two")]
    settings = {"engine": {"profiler_config": {"torch_profiler_dir": "/traces"}}}
    server = TextServer(
        tokenizer_folder, *infos, image_info("painter"), enable_runtime_loading=True, **settings
    )
    for path, on in (("/start_profile", True), ("/stop_profile", False)):
        server.engine.profiles.clear()
        assert (await server.client.post(f"{path}?model=two")).status_code == 200
        assert server.engine.profiles == [("two", on)]
        assert (await server.client.post(path)).status_code == 200
        assert server.engine.profiles[1:] == [(name, on) for name in ("one", "two", "painter")]
    for more, status, reason in (
        ({"enable_runtime_loading": True}, 400, "profiler_config"),
        (settings, 403, "--enable-runtime-loading"),
    ):
        closed = TextServer(tokenizer_folder, *infos, **more)
        refused = await closed.client.post("/start_profile")
        assert refused.status_code == status and reason in refused.text
        assert closed.engine.profiles == []


async def test_a_reset_is_for_one_text_model_or_all(tokenizer_folder: Path) -> None:
    infos = [text_info(tokenizer_folder, name) for name in ("one", "two")]
    server = TextServer(
        tokenizer_folder, *infos, image_info("painter"), enable_runtime_loading=True
    )
    for path in ("/reset_prefix_cache", "/flush_cache"):
        server.engine.resets.clear()
        assert (await server.client.post(f"{path}?model=two")).status_code == 200
        assert server.engine.resets == ["two"]
        assert (await server.client.post(path)).status_code == 200
        assert server.engine.resets == ["two", "one", "two"]
        assert (await server.client.post(f"{path}?model=painter")).status_code == 400
