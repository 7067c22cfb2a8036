"""`/metrics` by vLLM's names: what its fleets' tools read is there, and equals what happened."""

import asyncio
import random
import time
from collections import Counter
from pathlib import Path
from typing import Literal

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from engine.contract.generate import EngineStats
from tests.helpers.server.fake_server import answer_of, until
from tests.helpers.server.text_server import MODEL, TextServer, text_info

HISTOGRAMS = {
    *("time_to_first_token_seconds", "inter_token_latency_seconds"),
    *("time_per_output_token_seconds", "e2e_request_latency_seconds"),
    *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens"),
}


class Turnstile(asyncio.Event):
    """Lets one event pass, and no more until it is open."""

    is_open = False

    async def wait(self) -> Literal[True]:
        await super().wait()
        if not self.is_open:
            self.clear()
        return True


async def page(server: TextServer) -> dict[str, list[Sample]]:
    """The samples of the page by their names."""
    found: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families((await server.client.get("/metrics")).text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def only(samples: dict[str, list[Sample]], name: str) -> float:
    [sample] = samples[f"vllm:{name}"]
    assert sample.labels["model_name"] == MODEL
    return float(sample.value)


async def test_what_happened_is_there_by_vllms_names(server: TextServer) -> None:
    seed = random.randrange(1 << 30)
    rng = random.Random(seed)
    usages, reasons = [], Counter[str]()
    for _ in range(rng.randint(3, 6)):
        limit = rng.randint(2, 9)
        if rng.random() < 0.5:
            server.say_tokens(range(2, 2 + rng.randint(1, 12)))
        prompt = " ".join("fox" for _ in range(rng.randint(1, 9)))
        answer = answer_of(await server.complete(prompt=prompt, max_tokens=limit))
        usages.append(answer["usage"])
        reasons[answer["choices"][0]["finish_reason"]] += 1
    queries = rng.randint(100, 1000)
    hits, used = rng.randrange(queries), rng.randrange(64)
    stats = EngineStats(
        num_running=rng.randint(1, 9),
        num_waiting=rng.randint(1, 9),
        num_steps=10_000,
        kv_blocks_total=64,
        kv_blocks_used=used,
        prefix_cache_queries=queries,
        prefix_cache_hits=hits,
        num_preemptions=3,
    )
    server.engine.publish(MODEL, stats)

    found = await page(server)
    assert only(found, "num_requests_running") == stats.num_running, seed
    assert only(found, "num_requests_waiting") == stats.num_waiting
    assert only(found, "kv_cache_usage_perc") == used / 64
    assert only(found, "prefix_cache_queries_total") == queries
    assert only(found, "prefix_cache_hits_total") == hits
    assert only(found, "num_preemptions_total") == 3
    assert only(found, "prompt_tokens_total") == sum(u["prompt_tokens"] for u in usages)
    assert only(found, "generation_tokens_total") == sum(u["completion_tokens"] for u in usages)
    ended = {s.labels["finished_reason"]: s.value for s in found["vllm:request_success_total"]}
    assert {reason: count for reason, count in ended.items() if count} == reasons, seed
    between = sum(u["completion_tokens"] - 1 for u in usages)
    for name in HISTOGRAMS:
        is_per_token = name in ("inter_token_latency_seconds", "time_per_output_token_seconds")
        assert only(found, f"{name}_count") == (between if is_per_token else len(usages)), name
        inf = next(s for s in found[f"vllm:{name}_bucket"] if s.labels["le"] == "+Inf")
        assert inf.value == only(found, f"{name}_count")
    assert only(found, "request_prompt_tokens_sum") == only(found, "prompt_tokens_total")
    [config] = found["vllm:cache_config_info"]
    assert config.value == 1
    assert config.labels == {"model_name": MODEL, "block_size": "16", "num_gpu_blocks": "64"}
    assert "vllm:lora_requests_info" not in found, "the model takes no adapters"


async def test_adapters_of_requests_are_listed(tokenizer_folder: Path) -> None:
    info = text_info(tokenizer_folder, adapters=("poet", "judge", "idle"))
    server = TextServer(tokenizer_folder, info, engine={"max_loras": 2, "max_cpu_loras": 3})
    turnstile = server.engine.may_write = Turnstile()
    turnstile.set()

    async def adapters() -> tuple[str, str]:
        [sample] = (await page(server))["vllm:lora_requests_info"]
        assert sample.labels["max_lora"] == "2"
        assert abs(sample.value - time.time()) < 60
        return sample.labels["running_lora_adapters"], sample.labels["waiting_lora_adapters"]

    assert await adapters() == ("", "")
    tasks = [asyncio.create_task(server.complete(model="poet", max_tokens=2))]
    await until(lambda: any(run.progress().is_begun for _, run in server.state.live_requests.all()))
    tasks.append(asyncio.create_task(server.complete(model="judge", max_tokens=2)))
    await until(lambda: len(server.engine.requests) == 2)
    assert await adapters() == ("poet", "judge")
    turnstile.is_open = True
    turnstile.set()
    await asyncio.gather(*tasks)
    assert await adapters() == ("", "")


async def test_the_names_can_be_left_out(tokenizer_folder: Path) -> None:
    text = (await TextServer(tokenizer_folder, vllm_metrics=False).client.get("/metrics")).text
    assert "vllm" not in text
    assert "tandem_num_requests_running" in text
