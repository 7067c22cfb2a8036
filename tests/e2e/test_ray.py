"""Several servers behind one address, by Ray Serve on this machine alone."""

import contextlib
import csv
import io
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import httpx
import openai
import PIL.Image
import psutil
import pytest
import yaml

from loadtest.launch import free_port
from tests.helpers.served import START_TIMEOUT_S, Server, Stream

pytest.importorskip("ray", reason="Ray is not installed: pip install 'tandem-server[ray]'")
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TRACE = ROOT / "tests" / "data" / "azure_conv_trace.csv"
MAX_MODEL_LEN = 1 << 18
"""A text of this length takes minutes, so that no stream ends before its test does."""

ANSWERS_ARE_LONGER = 2
"""How many times longer they are than in the trace: the model is tiny."""


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


def server_pids(fleet: Server) -> list[int]:
    """The processes that Ray calls servers."""
    found = []
    for child in psutil.Process(fleet.process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            found += (
                [child.pid] if "ServeReplica:tandem:Server" in " ".join(child.cmdline()) else []
            )
    return found


def home(answer_id: str) -> str:
    """The name of the server that made an id."""
    return answer_id[-8:]


def answering(server: Server) -> str:
    """The name of the server that takes a request now."""
    body = {"model": "tiny", "prompt": "x", "max_tokens": 2}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return home(answer.json()["id"])


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
        first = answering(server)
        server.wait_until(lambda: answering(server) != first, START_TIMEOUT_S)  # both are there
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

    made: list[openai.types.responses.Response] = []
    while len({home(one.id) for one in made}) < 2:  # the one that was asked least is next
        made.append(
            client.responses.create(model="tiny", input=f"{len(made)}", max_output_tokens=4)
        )
    for one in made:
        assert client.responses.retrieve(one.id).output_text == one.output_text
        more = client.responses.create(
            model="tiny", input="more", previous_response_id=one.id, max_output_tokens=4
        )
        assert home(more.id) == home(one.id)

    arguments = {"model": "tandem-shapes", "prompt": "a red circle", "size": "64x64"}
    seeded = {"seed": 1, "num_steps": 4}
    pictures, homes = set(), set()
    while len(homes) < 2:  # the one that was asked least is next
        url = (
            client.images.generate(**arguments, response_format="url", extra_body=seeded)
            .data[0]
            .url
        )
        stored = [httpx.get(url, timeout=60) for _ in range(3)]
        assert {answer.status_code for answer in stored} == {200}
        assert PIL.Image.open(io.BytesIO(stored[0].content)).size == (64, 64)
        pictures |= {answer.content for answer in stored}
        homes.add(home(url.rpartition("/")[2].partition(".")[0]))
    assert len(pictures) == 1
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_" + random.randbytes(16).hex())


def test_a_server_that_dies_takes_only_its_own_requests_along_and_comes_back(two):
    text = {"model": "tiny", "max_tokens": MAX_MODEL_LEN - 100, "ignore_eos": True}
    pids = server_pids(two)
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
        two.wait_until(lambda: answering(two) not in homes, START_TIMEOUT_S)
    assert len(server_pids(two)) == 2 and pids[1] in server_pids(two)


class Replay:
    """Requests that arrive as in Azure's trace, over and over, streamed, each in a thread.

    Attributes:
        homes: the servers that have answered.
        failures: what was wrong with answers.
    """

    def __init__(self, server: Server) -> None:
        self.homes: set[str] = set()
        self.failures: list[str] = []
        self._server = server
        self._threads: list[threading.Thread] = []
        with TRACE.open() as file:
            rows = list(csv.DictReader(file))
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        gaps = [after - before for before, after in itertools.pairwise(times)]
        lengths = [ANSWERS_ARE_LONGER * int(row["GeneratedTokens"]) for row in rows]
        self._rows = itertools.cycle(zip(gaps, lengths, strict=False))
        self._next_s = time.monotonic()

    def send_due(self, slower: float = 1.0) -> None:
        """Send what has arrived meanwhile, at the trace's speed or a slower one."""
        while time.monotonic() >= self._next_s:
            gap, num_tokens = next(self._rows)
            self._next_s = time.monotonic() + slower * gap
            self._threads.append(threading.Thread(target=self._ask, args=(num_tokens,)))
            self._threads[-1].start()

    def finish(self) -> int:
        """Wait for all answers, and return how many requests there were."""
        for thread in self._threads:
            thread.join()
        return len(self._threads)

    def _ask(self, num_tokens: int) -> None:
        body = {
            "model": "tiny",
            "prompt": f"{random.random()}",
            "max_tokens": num_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        url = f"{self._server.url}/v1/completions"
        try:
            with httpx.stream("POST", url, json=body, timeout=START_TIMEOUT_S) as answer:
                lines = [line for line in answer.iter_lines() if line]
            assert answer.status_code == 200 and lines[-1] == "data: [DONE]", lines[-2:]
            last = json.loads(lines[-2].removeprefix("data: "))
            assert last["usage"]["completion_tokens"] == num_tokens
            self.homes.add(home(last["id"]))
        except Exception as error:
            self.failures.append(repr(error))


def test_servers_come_with_the_load_of_a_trace_and_go_without_losing_a_request(
    tmp_path, tiny_llama
):
    config, port = yaml.safe_load((ROOT / "configs" / "ray-serve.yaml").read_text()), free_port()
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = config["applications"]
    engine = {"num_threads": "1", "dtype": "float32", "max_num_seqs": 1, "kv_cache_memory_gib": 0.1}
    application["args"] |= {
        "settings": {
            "models": [f"tiny={tiny_llama(max_position_embeddings=MAX_MODEL_LEN)}"],
            "engine": engine,
        },
        "min_replicas": 1,
        "max_replicas": 3,
        "num_cpus": 0,
        "target_fullness": 0.1,
        "upscale_delay_s": 2,
        "downscale_delay_s": 5,
    }
    path = tmp_path / "ray-serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with fleet(tmp_path / "log", port, ("ray.serve.scripts", "run", str(path))) as server:
        assert len(server_pids(server)) == 1
        replay = Replay(server)

        def three_have_answered() -> bool:
            replay.send_due()
            return len(replay.homes) == 3

        def one_is_left() -> bool:
            replay.send_due(slower=10)
            return len(server_pids(server)) == 1

        server.wait_until(three_have_answered, START_TIMEOUT_S)
        server.wait_until(one_is_left, START_TIMEOUT_S)
        assert replay.finish() > 50
    assert replay.failures == []
