"""Several servers behind one address, by Ray Serve on this machine alone."""

import base64
import contextlib
import csv
import io
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import openai
import PIL.Image
import pytest
import yaml

from loadtest.launch import free_port
from tests.helpers.served import Server, Stream

pytest.importorskip("ray", reason="Ray is not installed: pip install 'tandem-server[ray]'")
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "tests" / "data" / "azure_conv_trace.csv"
MAX_MODEL_LEN = 1 << 18
"""A text of this length takes minutes, so that no stream ends before its test does."""


@contextlib.contextmanager
def fleet(log: Path, port: int, command: Sequence[str]) -> Iterator[Server]:
    """A cluster of this machine with the servers, until the `with` block ends."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        environment = {"RAY_TMPDIR": folder, "RAY_USAGE_STATS_ENABLED": "0"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            server = Server(log, port=port, command=(sys.executable, "-m", *command))
        try:
            server.wait_for("/ready")
            yield server
        finally:
            server.stop()


def server_pids() -> list[int]:
    """The processes that Ray calls servers."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"ServeReplica:tandem:Server" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def home(answer_id: str) -> str:
    """The name of the server that made an id."""
    return answer_id[-8:]


@pytest.fixture(scope="module")
def two(tmp_path_factory, model_cache, tiny_llama):
    """Two servers with a tiny model of texts and the built-in one of images."""
    folder, config = tmp_path_factory.mktemp("ray"), {"num_threads": "1", "dtype": "float32"}
    model = f"tiny={tiny_llama(max_position_embeddings=MAX_MODEL_LEN)}"
    settings = folder / "settings.yaml"
    settings.write_text(yaml.safe_dump({"engine": config}))
    port = free_port()
    options = ("--config", str(settings), "--replicas", "2", "--cpus", "0", "--port", str(port))
    command = ("server", "ray", model, "tandem-shapes", *options)
    with fleet(folder / "log", port, command) as server:
        yield server


@pytest.fixture
def client(two):
    with openai.OpenAI(base_url=f"{two.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_two_servers_answer_and_find_again_what_they_have_made(two, client):
    assert [model.id for model in client.models.list()] == ["tiny", "tandem-shapes"]
    whole = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=20, temperature=0
    )
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hello"}],
            max_tokens=20,
            temperature=0,
            stream=True,
        )
    )
    assert len(chunks) > 5
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content

    made = [
        client.responses.create(model="tiny", input=f"text {i}", max_output_tokens=4)
        for i in range(4)
    ]
    assert len({home(one.id) for one in made}) == 2
    for one in made:
        assert client.responses.retrieve(one.id).output_text == one.output_text
        more = client.responses.create(
            model="tiny", input="more", previous_response_id=one.id, max_output_tokens=4
        )
        assert home(more.id) == home(one.id)

    homes = set()
    for prompt in ("a red circle", "a blue square"):
        arguments = {"model": "tandem-shapes", "prompt": prompt, "size": "64x64"}
        url = client.images.generate(**arguments, response_format="url").data[0].url
        homes.add(home(url.rpartition("/")[2].partition(".")[0]))
        stored = [httpx.get(url, timeout=60) for _ in range(3)]
        assert {answer.status_code for answer in stored} == {200}
        assert PIL.Image.open(io.BytesIO(stored[0].content)).size == (64, 64)
        seeded = [
            client.images.generate(
                **arguments, response_format="b64_json", extra_body={"seed": 1, "num_steps": 4}
            )
            for _ in range(2)
        ]
        pictures = {base64.b64decode(one.data[0].b64_json) for one in seeded}
        assert len(pictures) == 1
    assert len(homes) == 2
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_" + random.randbytes(16).hex())


def test_a_server_that_dies_takes_only_its_own_requests_along_and_comes_back(two):
    text = {"model": "tiny", "max_tokens": MAX_MODEL_LEN - 100, "ignore_eos": True}
    pids = server_pids()
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(Stream(two, prompt=f"{i}", **text)) for i in range(6)]
        for one in streams:
            one.wait_for_events()
        homes = [home(json.loads(one.events[0])["id"]) for one in streams]
        assert sorted(homes.count(name) for name in set(homes)) == [3, 3]
        os.kill(pids[0], signal.SIGKILL)
        two.wait_until(lambda: sum(one.is_alive() for one in streams) == 3)
        lost = [one for one in streams if not one.is_alive()]
        assert len({homes[streams.index(one)] for one in lost}) == 1
        for one in lost:
            assert one.error()["message"]
        for one in streams:
            if one not in lost:
                one.wait_for_events(len(one.events) + 20)
        # The other one goes on taking requests until the lost one is back.
        answered = set()

        def is_back() -> bool:
            answer = httpx.post(
                f"{two.url}/v1/completions",
                json={"model": "tiny", "prompt": "x", "max_tokens": 2},
                timeout=60,
            )
            assert answer.status_code == 200, answer.text
            answered.add(home(answer.json()["id"]))
            return bool(answered - set(homes))

        two.wait_until(is_back, 200)
    assert len(server_pids()) == 2 and pids[1] in server_pids()


def test_servers_come_with_the_load_of_a_trace_and_go_without_losing_a_request(
    tmp_path, tiny_llama
):
    config, port = yaml.safe_load((ROOT / "configs" / "ray-serve.yaml").read_text()), free_port()
    config["http_options"]["port"] = port
    config["http_options"]["host"] = "127.0.0.1"
    [application] = config["applications"]
    folder = str(tiny_llama(max_position_embeddings=MAX_MODEL_LEN))
    engine = {"num_threads": "1", "dtype": "float32", "max_num_seqs": 2, "kv_cache_memory_gib": 0.1}
    application["args"] |= {
        "settings": {"models": [f"tiny={folder}"], "engine": engine},
        **{"min_replicas": 1, "max_replicas": 3, "num_cpus": 0},
        **{"upscale_delay_s": 2, "downscale_delay_s": 5},
    }
    path = tmp_path / "ray-serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with TRACE.open() as file:
        lengths = [int(row["GeneratedTokens"]) for row in csv.DictReader(file)]

    answers: list[tuple[str, int]] = []
    failures: list[str] = []

    def ask(server: Server, num_tokens: int) -> None:
        body = {
            **{"model": "tiny", "prompt": f"{random.random()}", "max_tokens": num_tokens},
            **{"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}},
        }
        try:
            with httpx.stream(
                "POST", f"{server.url}/v1/completions", json=body, timeout=120
            ) as answer:
                lines = [line for line in answer.iter_lines() if line]
            assert answer.status_code == 200 and lines[-1] == "data: [DONE]", lines[-2:]
            last = json.loads(lines[-2].removeprefix("data: "))
            assert last["usage"]["completion_tokens"] == num_tokens
            answers.append((home(last["id"]), num_tokens))
        except Exception as error:
            failures.append(repr(error))

    threads: list[threading.Thread] = []
    rows = iter(lengths * 20)

    def send(server: Server) -> None:
        thread = threading.Thread(target=ask, args=(server, 5 * next(rows)))
        threads.append(thread)
        thread.start()

    def running() -> int:
        return sum(thread.is_alive() for thread in threads)

    with fleet(tmp_path / "log", port, ("ray.serve.scripts", "run", str(path))) as server:
        assert len(server_pids()) == 1

        def three_answer() -> bool:
            while running() < 8:
                send(server)
            return len({name for name, _ in answers}) == 3

        server.wait_until(three_answer, 200)

        def one_is_left() -> bool:
            if not running():
                send(server)
            return len(server_pids()) == 1

        server.wait_until(one_is_left, 200)
        for thread in threads:
            thread.join()
    assert failures == []
