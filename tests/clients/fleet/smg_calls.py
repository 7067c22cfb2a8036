# /// script
# dependencies = ["httpx", "msgspec", "openai", "pytest", "pyzmq", "smg", "smg-grpc-servicer"]
# ///
"""SMG: https://github.com/lightseekorg/smg, its gateway in front of two servers, and the relay by
which it reads vLLM's KV events."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import time

import httpx
import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from smg_grpc_servicer.kv_relay import Engine, Normalizer, RankSource, relay, replay_frames

URLS = os.environ["SERVER_URLS"].split()
PORTS = json.loads(os.environ["EVENT_PORTS"])
MODEL = "smollm2-135m-instruct"
ROUTED = "x-smg-routed-worker-id"
BLOCK = 16


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def words(count):
    return " ".join("".join(random.choices("abcdefghij", k=4)) for _ in range(count))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    port, log = free_port(), tmp_path_factory.mktemp("smg") / "log"
    command = [sys.executable, "-m", "smg", "launch", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--worker-urls", *URLS, "--policy", "cache_aware"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        until_s = time.monotonic() + 60
        while not all_ready(url):
            assert process.poll() is None and time.monotonic() < until_s, log.read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait()


def all_ready(url):
    try:
        workers = httpx.get(f"{url}/workers").json()["workers"]
    except httpx.TransportError:
        return False
    return [worker["status"] for worker in workers] == ["ready"] * len(URLS)


@pytest.fixture
def client(gateway):
    return OpenAI(base_url=f"{gateway}/v1", api_key="unused", max_retries=0)


def chat(client, text, **more):
    messages = [{"role": "user", "content": text}]
    more = {"max_tokens": 12, "temperature": 0, **more}
    return client.chat.completions.create(model=MODEL, messages=messages, **more)


def test_it_knows_what_the_servers_are(gateway):
    workers = httpx.get(f"{gateway}/workers").json()["workers"]
    assert {worker["url"] for worker in workers} == set(URLS)
    for worker in workers:
        assert (worker["model_id"], worker["runtime_type"]) == (MODEL, "vllm")
        assert worker["models"][0]["context_length"] == 8192
    assert [model["id"] for model in httpx.get(f"{gateway}/v1/models").json()["data"]] == [MODEL]


def test_answers_are_those_of_a_server(client):
    text = words(5)
    [direct] = chat(OpenAI(base_url=f"{URLS[0]}/v1", api_key="unused"), text).choices
    [routed] = chat(client, text).choices
    assert routed.message.content == direct.message.content != ""
    assert routed.finish_reason == direct.finish_reason
    chunks = list(chat(client, text, stream=True, stream_options={"include_usage": True}))
    said = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert said == direct.message.content
    assert chunks[-1].usage.completion_tokens <= 12


def test_other_operations(client):
    assert client.completions.create(model=MODEL, prompt="The sea", max_tokens=4).choices[0].text
    response = client.responses.create(model=MODEL, input="Say hello.", max_output_tokens=16)
    assert response.output_text
    tool = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    [choice] = chat(
        client, "Weather?", tools=[{"type": "function", "function": tool}], tool_choice="required"
    ).choices
    assert choice.message.tool_calls[0].function.name == "weather"


def test_errors_arrive(client):
    with pytest.raises(NotFoundError):
        client.chat.completions.create(model="none", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(BadRequestError, match="context"):
        chat(client, words(9000))


def test_prompts_meet_where_they_are_cached(client):
    stems, places = [words(100) for _ in range(6)], {}
    for repeat in range(3):
        for stem in random.sample(stems, len(stems)):
            raw = client.chat.completions.with_raw_response.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"{stem} {words(3)}"}],
                max_tokens=2,
            )
            place = raw.headers[ROUTED]
            assert places.setdefault(stem, place) == place
            cached = raw.parse().usage.prompt_tokens_details.cached_tokens
            assert repeat == 0 or cached > 100
    assert set(places.values()) == set(URLS)


def test_a_flush_empties_the_caches(client, gateway):
    text = words(60)
    assert chat(client, text).usage.prompt_tokens_details.cached_tokens < 100
    assert chat(client, text).usage.prompt_tokens_details.cached_tokens > 100
    flushed = httpx.post(f"{gateway}/flush_cache", timeout=30).json()
    assert (flushed["status"], flushed["workers_flushed"]) == ("success", len(URLS)), flushed
    assert chat(client, text).usage.prompt_tokens_details.cached_tokens < 100


class Call:
    """What its relay needs of a gRPC call."""

    def __init__(self):
        self.failure = None

    async def send_initial_metadata(self, metadata):
        pass

    def cancelled(self):
        return False

    async def abort(self, code, details):
        self.failure = (code, details)


def ask_anew(number, prompt):
    httpx.post(f"{URLS[number]}/flush_cache").raise_for_status()
    complete(number, prompt)


def complete(number, prompt):
    body = {"model": MODEL, "prompt": prompt, "max_tokens": 3}
    answer = httpx.post(f"{URLS[number]}/v1/completions", json=body, timeout=60).json()
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def tokens_of(number, prompt):
    body = {"model": MODEL, "prompt": prompt}
    [rendered] = httpx.post(f"{URLS[number]}/v1/completions/render", json=body).json()
    return rendered["token_ids"]


@pytest.mark.parametrize("number", range(len(URLS)))
def test_its_relay_reads_the_events(number):
    events, replay = (f"tcp://127.0.0.1:{port}" for port in PORTS[number])
    prompt, call, normalizer = words(80), Call(), Normalizer()
    token_ids = tokens_of(number, prompt)
    full = len(token_ids) // BLOCK * BLOCK

    async def keep_asking():
        while True:  # the relay subscribes at some time
            await asyncio.to_thread(ask_anew, number, prompt)

    async def follow():
        source, known = RankSource(0, events, replay), {}
        stream = relay([source], Engine.VLLM, 0, call, topic="kv-events", normalizer=normalizer)
        asking = asyncio.create_task(keep_asking())
        async for batch in stream:
            for event in batch.events:
                note(known, event)
            if normalizer.counts.forwarded_cleared and token_ids[:full] in known.values():
                break
        asking.cancel()
        await stream.aclose()

    asyncio.run(follow())
    assert call.failure is None
    assert (normalizer.counts.dropped, normalizer.counts.duplicate_stores) == ({}, 0)


def note(known, event):
    """The tokens up to the end of each block, by its hash."""
    if event.HasField("cleared"):
        known.clear()
    for block_hash in event.removed.block_hashes:
        del known[block_hash]
    stored = event.stored
    before = known.get(stored.parent_block_hash, []) if stored.parent_block_hash else []
    for block in stored.blocks:
        assert (len(block.token_ids), block.block_size) == (BLOCK, BLOCK)
        before = known[block.block_hash] = [*before, *block.token_ids]


@pytest.mark.parametrize("number", range(len(URLS)))
def test_it_replays_what_it_missed(number):
    complete(number, words(50))

    async def replayed():
        replay = f"tcp://127.0.0.1:{PORTS[number][1]}"
        return [number async for number, _ in replay_frames(replay, 0, timeout=30)]

    numbers = asyncio.run(replayed())
    assert numbers == list(range(len(numbers))) and numbers
