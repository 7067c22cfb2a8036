"""A server whose cache others follow over ZeroMQ, as the routers of vLLM's fleets do."""

import contextlib
import json
import os
import random
import signal
import socket
from dataclasses import dataclass, field

import httpx
import msgspec
import pytest
import zmq

pytestmark = pytest.mark.e2e
TOPIC = "kv-events"
BLOCK = 16


@dataclass
class Index:
    """What a router knows of a worker: the tokens of each cached block and of those before it."""

    socket: zmq.Socket
    texts: dict[int, list[int]] = field(default_factory=dict)
    num_batches: int = 0
    """The number of batches that were read since the worker's start."""
    rank: int | None = None

    def read(self):
        """Ask for what has not been read yet, and apply it."""
        self.socket.send_multipart((b"", self.num_batches.to_bytes(8, "big")))
        while True:
            assert self.socket.poll(60_000)
            _, topic, number, payload = self.socket.recv_multipart()
            if not payload:
                return self
            assert (topic.decode(), int.from_bytes(number, "big")) == (TOPIC, self.num_batches)
            self.num_batches += 1
            self.apply(msgspec.msgpack.decode(payload))

    def apply(self, batch):
        _, events, self.rank = batch
        for event in events:
            if event["type"] == "AllBlocksCleared":
                self.texts.clear()
            elif event["type"] == "BlockRemoved":
                for one in event["block_hashes"]:
                    del self.texts[one]
            else:
                self.store(**event)

    def store(self, *, type, block_hashes, parent_block_hash, token_ids, block_size, **more):
        assert (type, block_size, more["medium"]) == ("BlockStored", BLOCK, "GPU")
        before = [] if parent_block_hash is None else self.texts[parent_block_hash]
        for number, one in enumerate(block_hashes, 1):
            assert one not in self.texts
            self.texts[one] = before + token_ids[: number * BLOCK]

    def longest(self, prompt):
        """The number of tokens of a prompt that it expects the worker to know."""
        known = [text for text in self.texts.values() if prompt[: len(text)] == text]
        return max(map(len, known), default=0)


def prompt_of(length):
    return [random.randrange(3, 250) for _ in range(length)]


def complete(server, prompt):
    """The number of tokens that were cached."""
    body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]


@pytest.fixture
def ports():
    """Two, with a free one behind each for a second replica."""
    with contextlib.ExitStack() as stack:
        found = []
        while len(found) < 2:
            first = stack.enter_context(socket.create_server(("", 0))).getsockname()[1]
            with contextlib.suppress(OSError):
                stack.enter_context(socket.create_server(("", first + 1)))
                found.append(first)
    return found


@pytest.fixture
def start(start_server, tiny_llama):
    def start(ports, *options):
        config = {
            "enable_kv_cache_events": True,
            "endpoint": f"tcp://*:{ports[0]}",
            "replay_endpoint": f"tcp://*:{ports[1]}",
            "topic": TOPIC,
        }
        return start_server(
            *("--model", f"m={tiny_llama(seed=11)}", "--dtype", "float32", "--device", "cpu"),
            *("--kv-cache-memory-gib", "0.05", "--enable-runtime-loading"),
            *("--kv-events-config", json.dumps(config)),
            *options,
        )

    return start


@pytest.fixture
def index_of():
    with zmq.Context() as context:
        context.linger = 0
        sockets = []

        def index_of(port):
            sockets.append(context.socket(zmq.DEALER))
            sockets[-1].connect(f"tcp://127.0.0.1:{port}")
            return Index(sockets[-1])

        yield index_of
        for one in sockets:
            one.close()


def test_a_router_knows_what_a_worker_will_find(start, index_of, ports):
    small = ("--num-kv-blocks", "24", "--max-model-len", "200", "--prefix-cache-memory-gib", "1")
    server = start(ports, *small)
    index, stems = index_of(ports[1]), [prompt_of(random.randint(40, 90)) for _ in range(3)]
    found = 0
    for _ in range(12):
        prompt = random.choice(stems) + prompt_of(random.randint(1, 60))
        expected = index.read().longest(prompt[:-1])
        assert complete(server, prompt) == expected
        found += expected
    assert found and index.read().rank == 0
    httpx.post(f"{server.url}/reset_prefix_cache").raise_for_status()
    server.wait_until(lambda: not index.read().texts)
    assert complete(server, stems[0]) == 0
    assert index.read().longest(stems[0]) == len(stems[0]) // BLOCK * BLOCK

    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.wait_until(lambda: server.get("/ready/m")[1].get("restarts") == 1)
    server.wait_for("/ready/m")
    assert complete(server, stems[1]) == 0
    again = index_of(ports[1])
    again.texts = {-1: stems[0]}  # what it knew of the worker that has ended
    assert again.read().longest(stems[0]) == 0
    assert again.longest(stems[1]) == len(stems[1]) // BLOCK * BLOCK
    assert server.metric("tandem_kv_event_batches_dropped_total") == 0


def test_each_replica_has_ports_of_its_own(start, index_of, ports):
    server = start(ports, "--replicas", "2")
    indexes = [index_of(ports[1]), index_of(ports[1] + 1)]
    prompts = [prompt_of(50) for _ in range(4)]
    for prompt in prompts:
        assert complete(server, prompt) == 0
    known = [[index.read().longest(prompt) for prompt in prompts] for index in indexes]
    assert [index.rank for index in indexes] == [0, 1]
    assert [sorted(both) for both in zip(*known, strict=True)] == [[0, 48]] * 4
