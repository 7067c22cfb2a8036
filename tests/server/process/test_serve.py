"""The real process with a scripted engine: signals, draining, sockets."""

import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from pydantic import TypeAdapter

from loadtest.launch import free_port
from server.app import create_app
from server.process.draining_server import DrainingServer, uvicorn_config
from server.process.listen import open_listener
from server.settings import Settings
from tests.helpers.draws import some
from tests.helpers.server.fake_engine import FakeEngine

pytestmark = pytest.mark.e2e

CHILD = """
import asyncio, gc, signal, sys
sys.path.insert(0, {here!r})
from tests.helpers.server.fake_engine import FakeEngine
from tests.helpers.server.text_server import babble, text_info
from server.process.serve import run
from server.settings import load_settings

class Engine(FakeEngine):
    while_starting = None

    async def start(self):
        await super().start()
        self.while_starting = []
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.release)
        if {is_held}:
            self.hold()

    async def stop(self, drain_timeout_s):
        await asyncio.sleep({stop_s})
        await super().stop(drain_timeout_s)

engine = Engine(text_info({folder!r}), reply=babble, delay_s={delay_s})
code = run(load_settings({given!r}), lambda settings: engine)
walked = any(kept is engine.while_starting for kept in gc.get_objects())
open({walked!r}, "w").write(str(walked))
sys.exit(code)
"""


class Child:
    """A server process of its own.

    Args:
        is_held: whether no text is written before `release`.
    """

    def __init__(self, folder, log_path, *, delay_s=0.0, stop_s=0.0, is_held=False, **given):
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.log_path = log_path
        here = str(Path(__file__).parents[3])
        settings = {"port": str(port), "log_format": "json", **given}
        self.walked_path = log_path.with_suffix(".walked")
        """Whether garbage collection walked an object made during the start, once it has ended."""
        code = CHILD.format(
            here=here,
            folder=str(folder),
            delay_s=delay_s,
            stop_s=stop_s,
            is_held=is_held,
            given=settings,
            walked=str(self.walked_path),
        )
        with log_path.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)

    def log(self):
        return self.log_path.read_text()

    def wait_until(self, is_so):
        deadline_s = time.monotonic() + 120
        while not is_so():
            assert self.process.poll() is None and time.monotonic() < deadline_s, self.log()
            time.sleep(0.02)

    def wait_for_ready(self):
        def is_ready():
            with contextlib.suppress(httpx.HTTPError):
                return self.get("/ready").status_code == 200

        self.wait_until(is_ready)

    def get(self, path):
        return httpx.get(self.url + path, timeout=60)

    def messages(self):
        """The lines of its log that are written to their ends."""
        return [json.loads(line) for line in self.log().splitlines(keepends=True) if "\n" in line]

    def wait_for_message(self, message):
        self.wait_until(lambda: message in [line["message"] for line in self.messages()])

    def release(self):
        self.kill(signal.SIGUSR1)

    def kill(self, number):
        self.process.send_signal(number)

    def wait(self, timeout_s=60):
        return self.process.wait(timeout_s)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@pytest.fixture
def start(tokenizer_folder, tmp_path):
    with contextlib.ExitStack() as stack:
        numbers = itertools.count()

        def start(wait=True, **how):
            child = Child(tokenizer_folder, tmp_path / f"server-{next(numbers)}.log", **how)
            stack.callback(child.end)
            if wait:
                child.wait_for_ready()
            return child

        yield start


@pytest.fixture(scope="module")
def bounded(tokenizer_folder, tmp_path_factory):
    """One that is sent too much, by several tests."""
    log_path = tmp_path_factory.mktemp("bounded") / "server.log"
    given = {"api_keys": "the-key", "max_body_bytes": "65536"}
    child = Child(tokenizer_folder, log_path, **given)
    try:
        child.wait_for_ready()
        yield child
    finally:
        child.end()


class Reader(threading.Thread):
    """Reads one streamed completion in the background, which the server has got."""

    def __init__(self, child, max_tokens):
        super().__init__()
        self.lines = []
        self.error = None
        self.url = f"{child.url}/v1/completions"
        self.body = {"prompt": "the fox", "max_tokens": max_tokens, "stream": True}
        self.start()
        child.wait_until(lambda: child.get("/load").json()["server_load"] == 1)

    def run(self):
        try:
            with httpx.stream("POST", self.url, json=self.body, timeout=60) as response:
                for line in response.iter_lines():
                    if line.startswith("data: "):
                        self.lines.append(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            self.error = error


def ask(child):
    return httpx.post(
        f"{child.url}/v1/completions", json={"prompt": "the fox", "max_tokens": 2}, timeout=60
    )


@pytest.mark.parametrize("number", some([signal.SIGTERM, signal.SIGINT], 1))
def test_a_signal_drains(start, number):
    child = start(is_held=True)
    reader = Reader(child, max_tokens=40)
    idle = httpx.Client(timeout=60)  # a kept connection must not hold the server up
    assert idle.get(f"{child.url}/health").status_code == 200
    child.kill(number)
    child.wait_for_message("draining")
    told = [line for line in child.messages() if line["message"] == "draining"]
    assert [line["num_requests"] for line in told] == [1]
    assert child.get("/health").status_code == 200
    ready = child.get("/ready")
    assert (ready.status_code, ready.json()["phase"]) == (503, "draining")
    refused = ask(child)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    child.release()
    reader.join(60)
    assert reader.error is None
    assert reader.lines[-1] == "[DONE]"
    finish = [json.loads(line)["choices"][0]["finish_reason"] for line in reader.lines[:-1]]
    assert finish[-1] == "length"
    assert child.wait() == 0
    assert "Traceback" not in child.log()
    idle.close()


def test_without_work_it_stops_at_once_and_its_log_is_json_throughout(start):
    """And garbage collections did not walk what was loaded."""
    child = start(drain_timeout_s="120", log_level="debug")
    ask(child)
    child.wait_for_message("ready")
    start_s = time.monotonic()
    child.kill(signal.SIGTERM)
    assert child.wait() == 0
    assert time.monotonic() - start_s < 60
    assert child.walked_path.read_text() == "False"
    lines = [json.loads(line) for line in child.log().splitlines()]
    ready = next(line for line in lines if line["message"] == "ready")
    assert ready["try_with"]
    assert all(line.endswith(f" --url {child.url}") for line in ready["try_with"])
    request = next(line for line in lines if line.get("route") == "/v1/completions")
    assert request["status"] == 200
    assert request["request_id"]
    assert "the fox" not in child.log(), "prompts are not logged unless asked for"


async def test_routes_are_built_before_the_first_request(monkeypatch):
    """It takes a tenth of a second, in which no stream goes on: `tests/server/test_app.py`."""
    built = []
    build = TypeAdapter.__init__

    def note(self, *args, **kwargs):
        built.append(args)
        build(self, *args, **kwargs)

    async def start(self, sockets=None):
        built.clear()

    monkeypatch.setattr("server.app.FastAPI", FastAPI)  # not the one that shares its routes
    monkeypatch.setattr(TypeAdapter, "__init__", note)
    monkeypatch.setattr(uvicorn.Server, "startup", start)
    settings = Settings(port=0)
    with contextlib.closing(open_listener(settings)) as listener:
        app = create_app(settings, FakeEngine())
        server = DrainingServer(uvicorn_config(settings, app), app, listener)
        await server.startup()
        server._announcement.cancel()
    assert built
    built.clear()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        await client.post("/v1/load_lora_adapter", json={})
    assert built == []


def test_what_does_not_finish_in_time_ends_with_an_error(start):
    child = start(is_held=True, drain_timeout_s="0.5")
    reader = Reader(child, max_tokens=200)
    start_s = time.monotonic()
    child.kill(signal.SIGTERM)
    assert child.wait() == 0
    assert 0.4 < time.monotonic() - start_s < 50
    reader.join(60)
    assert reader.error is None
    assert reader.lines[-1] == "[DONE]"
    assert "error" in json.loads(reader.lines[-2])
    assert "Traceback" not in child.log()


def test_a_second_signal_ends_it_at_once(start):
    child = start(is_held=True, drain_timeout_s="120")
    reader = Reader(child, max_tokens=200)
    child.kill(signal.SIGTERM)
    child.wait_for_message("draining")
    start_s = time.monotonic()
    child.kill(signal.SIGINT)
    assert child.wait() == 1
    assert time.monotonic() - start_s < 50
    reader.join(60)
    assert "Traceback" not in child.log()
    assert "never retrieved" not in child.log()


def test_a_second_signal_needs_no_traceback_for_who_is_cut_off(start):
    """This holds also where the engine takes longer to stop than the connections."""
    child = start(is_held=True, stop_s=1.0)
    asked = threading.Thread(target=ask_long, args=(child,))
    asked.start()
    child.wait_until(lambda: child.get("/load").json()["server_load"] == 1)
    child.kill(signal.SIGINT)
    child.wait_for_message("draining")
    child.kill(signal.SIGINT)
    assert child.wait() == 1
    asked.join(60)
    assert "Traceback" not in child.log()


def ask_long(child):
    body = {"prompt": "the fox", "max_tokens": 200}
    with contextlib.suppress(httpx.HTTPError):
        httpx.post(f"{child.url}/v1/completions", json=body, timeout=60)


def test_a_port_in_use_is_one_line(start):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        child = start(wait=False, port=str(port))
        assert child.wait() == 1
    assert child.log().startswith(f"tandem: port {port} is in use")
    assert len(child.log().splitlines()) == 1


def test_a_certificate_that_is_none_is_one_line(start, tmp_path):
    path = tmp_path / "cert.pem"
    path.write_text("not a certificate")
    child = start(wait=False, ssl_certfile=str(path))
    assert child.wait() == 2
    assert "ssl_certfile" in child.log()
    assert "Traceback" not in child.log()


def test_a_unix_socket(start, tmp_path):
    path = tmp_path / "server.sock"
    child = start(wait=False, uds=str(path))
    child.wait_for_message("ready")
    transport = httpx.HTTPTransport(uds=str(path))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        assert client.get("/ready").status_code == 200
    child.kill(signal.SIGTERM)
    assert child.wait() == 0
    assert not path.exists()


def test_a_client_that_is_still_sending_reads_the_413(bounded):
    for head in (
        b"Content-Length: 200000\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n",
    ):
        chunked = b"chunked" in head
        with socket.create_connection(("127.0.0.1", bounded.port), timeout=60) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer the-key\r\n"
                b"Content-Type: application/json\r\n" + head
            )
            for _ in range(20):
                connection.sendall(b"2710\r\n" * chunked + b"x" * 10_000 + b"\r\n" * chunked)
                time.sleep(0.005)
            if chunked:
                connection.sendall(b"0\r\n\r\n")
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 413"), answer[:200]
        assert b"request_too_large" in answer
        assert b"100 Continue" not in answer


@pytest.mark.parametrize(
    ("start_of_line", "end_of_line"), [(b"", b""), (b"X-Line: ", b"\r\n")], ids=["one", "many"]
)
def test_a_hundred_megabytes_of_headers_cost_nothing(bounded, start_of_line, end_of_line):
    memory = psutil.Process(bounded.process.pid).memory_info
    before = memory().rss
    piece = (start_of_line + b"v" * 1000 + end_of_line) * 100
    slowest_s = 0.0
    with socket.create_connection(("127.0.0.1", bounded.port), timeout=60) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Value: ")
        for number in range(1000):
            connection.sendall(piece)
            if number % 100 == 0:
                start_s = time.monotonic()
                assert httpx.get(f"{bounded.url}/health", timeout=60).status_code == 200
                slowest_s = max(slowest_s, time.monotonic() - start_s)
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 431 "), answer[:200]
    assert memory().rss - before < 10 << 20
    assert slowest_s < 30  # 0.1 s on an idle machine; it was minutes


def test_a_client_that_asks_first_is_refused_before_it_sends(bounded):
    with socket.create_connection(("127.0.0.1", bounded.port), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Bearer the-key\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 200000\r\n\r\n"
        )
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer
