"""What a client can do to the server before it has shown a key: send too much, too slowly, or not
read."""

import asyncio
import contextlib
import json
import re
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from uvicorn.server import ServerState

from server.http.connection import (
    KEEP_ALIVE_S,
    LINGER_S,
    MAX_NUM_HEADERS,
    MAX_PIPELINED,
    MAX_URL_BYTES,
    ClientConnection,
    ConnectionLimits,
    check_connections,
)
from server.process.draining_server import DrainingServer, uvicorn_config
from server.process.listen import open_listener
from server.settings import Settings
from tests.helpers.server.fake_server import until
from tests.helpers.server.text_server import MODEL, TextServer, text_info

LIMIT = 8192
KEY = "the-key"


class Site:
    """A server that listens, in this event loop."""

    def __init__(self, text: TextServer, server: DrainingServer, port: int) -> None:
        self.text = text
        self.server = server
        self.port = port

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 24)

    async def send(self, *pieces: bytes) -> bytes:
        """The whole answer to pieces sent one by one, the last of which ends nothing."""
        reader, writer = await self.connect()
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        async with asyncio.timeout(60):
            answer = await read_all(reader)
        writer.close()
        return answer

    def cuts(self, reason: str) -> float:
        registry = self.text.app.state.tandem.metrics.registry
        name = "tandem_connections_cut_total"
        return registry.get_sample_value(name, {"reason": reason}) or 0.0


@asynccontextmanager
async def listening(folder: Path, **settings: Any) -> AsyncIterator[Site]:
    info = text_info(folder, max_model_len=1_000_000)
    text = TextServer(folder, info, port=0, max_header_bytes=LIMIT, **settings)
    listener = open_listener(text.settings)
    server = DrainingServer(uvicorn_config(text.settings, text.app), text.app, listener)
    task = asyncio.create_task(server.serve(sockets=[listener.socket]))
    await until(lambda: server.started)
    try:
        yield Site(text, server, listener.socket.getsockname()[1])
    finally:
        server.should_exit = True
        await task
        listener.close()


@pytest.fixture
async def site(tokenizer_folder: Path) -> AsyncIterator[Site]:
    async with listening(tokenizer_folder) as site:
        yield site


async def read_all(reader: asyncio.StreamReader) -> bytes:
    """Up to the end, which is a reset where bytes of ours were still on their way."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := await reader.read(1 << 16):
            answer += piece
    return answer


def post(body: bytes | dict[str, Any], *headers: bytes, chunked: bool = False) -> bytes:
    if isinstance(body, dict):
        body = json.dumps(body).encode()
    size = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(body)
    lines = (b"POST /v1/completions HTTP/1.1", b"Host: x", b"Content-Type: application/json", size)
    return b"\r\n".join((*lines, *headers, b"", b"")) + (b"" if chunked else body)


def get(path: bytes = b"/health", *headers: bytes) -> bytes:
    return b"\r\n".join((b"GET " + path + b" HTTP/1.1", b"Host: x", *headers, b"", b""))


def error_of(answer: bytes, status: int) -> dict[str, Any]:
    """The error of a single answer that ends its connection."""
    head, body = answer.split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert b"connection: close" in head.lower()
    error: dict[str, Any] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


async def test_a_client_of_http_1_0_gets_a_stream_without_chunks(site: Site) -> None:
    site.text.say("the fox jumps")
    new = post({"prompt": "a", "stream": True}, b"Connection: close")
    for version, is_chunked in ((b"HTTP/1.1", True), (b"HTTP/1.0", False)):
        head, body = (await site.send(new.replace(b"HTTP/1.1", version))).split(b"\r\n\r\n", 1)
        assert (b"transfer-encoding: chunked" in head.lower()) is is_chunked
        assert body.startswith(b"data: ") is not is_chunked
        assert body.endswith(b"data: [DONE]\n\n") is not is_chunked
    whole = post({"prompt": "a"}).replace(b"HTTP/1.1", b"HTTP/1.0")
    head, body = (await site.send(whole)).split(b"\r\n\r\n", 1)
    assert b"content-length: %d\r\n" % len(body) in head.lower()


# Too much.

PIECE = b"v" * 1024
OPEN_HEAD = get()[:-2]
CHUNKED = post(b"", chunked=True) + b"2\r\n{}\r\n"


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (OPEN_HEAD, b"X-Line: %s\r\n" % PIECE),
        (OPEN_HEAD + b"X-Value: ", PIECE),
        (OPEN_HEAD, PIECE),
        (b"", b"\r\n" * 512),
        (CHUNKED + b"0\r\n", b"X-Trailer: %s\r\n" % PIECE),
        (CHUNKED + b"0\r\nX-Trailer: ", PIECE),
        (CHUNKED + b"1;extension=", PIECE),
        (OPEN_HEAD, b"a:b\r\n" * MAX_NUM_HEADERS),
    ],
    ids=["lines", "value", "name", "line-ends", "trailers", "trailer", "extension", "number"],
)
async def test_endless_headers_are_refused_before_the_key_is_asked_for(
    tokenizer_folder: Path, head: bytes, piece: bytes
) -> None:
    async with listening(tokenizer_folder, api_keys=(KEY,)) as site:
        if b"chunked" in head:  # only who has the key is listened to for so long
            head = head.replace(b"Host: x", b"Host: x\r\nX-Api-Key: " + KEY.encode())
        answer = await site.send(head, *[piece] * 10)
        assert error_of(answer, 431)["code"] == "headers_too_large"
        assert site.cuts("headers_too_large") == 1
        assert not site.text.engine.requests


async def test_a_long_url_is_refused(site: Site) -> None:
    answer = await site.send(get(b"/" + b"u" * MAX_URL_BYTES))
    assert str(MAX_URL_BYTES) in error_of(answer, 414)["message"]


async def test_headers_within_the_limits_pass(site: Site) -> None:
    for headers in (
        [b"X-Value: " + b"v" * (LIMIT - 100)],
        [b"X-%d: v" % i for i in range(MAX_NUM_HEADERS - 2)],
    ):
        answer = await site.send(get(b"/health", *headers, b"Connection: close"))
        assert answer.startswith(b"HTTP/1.1 200 ")


async def test_each_request_of_a_connection_has_headers_of_its_own(site: Site) -> None:
    one = get(b"/health", b"X-Value: " + b"v" * (LIMIT // 2))
    last = get(b"/health", b"Connection: close")
    answer = await site.send(*[one] * 5, last)
    assert answer.count(b"HTTP/1.1 200 OK") == 6


async def test_a_request_has_one_host(site: Site) -> None:
    head = b"GET /health HTTP/1.%d\r\n%sConnection: close\r\n\r\n"
    for version, num_hosts in ((1, 0), (1, 2), (0, 2)):
        answer = await site.send(head % (version, b"hOst: x\r\n" * num_hosts))
        assert f"{num_hosts} Host headers" in error_of(answer, 400)["message"]
    for version, num_hosts in ((1, 1), (0, 1), (0, 0)):
        answer = await site.send(head % (version, b"hOst: x\r\n" * num_hosts))
        assert answer.startswith(b"HTTP/1.1 200 ")
    assert site.cuts("malformed_http") == 3


async def test_a_trailer_is_no_header(tokenizer_folder: Path) -> None:
    """Proxies check and rewrite headers; what comes after the body would pass them by."""
    async with listening(tokenizer_folder, api_keys=(KEY,)) as site:
        trailer = b"0\r\nX-Api-Key: " + KEY.encode() + b"\r\n\r\n"
        answer = await site.send(CHUNKED + trailer + get(b"/health", b"Connection: close"))
        assert answer.startswith(b"HTTP/1.1 401 ")


async def test_what_is_not_http_is_told_in_the_usual_shape(site: Site) -> None:
    for nonsense in (b"SSH-2.0-x\r\n", b"GET\r\n\r\n", get(b"/health", b"bad header")):
        assert error_of(await site.send(nonsense), 400)["code"] == "malformed_http"
    answer = await site.send(post(b"", chunked=True) + b"xyz\r\n")
    assert error_of(answer, 400)["code"] == "malformed_http"
    assert site.cuts("malformed_http") == 4


async def test_another_protocol_is_not_offered(site: Site) -> None:
    reader, writer = await site.connect()
    writer.write(get(b"/health", b"Connection: Upgrade", b"Upgrade: h2c"))
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    writer.close()


# Several at once.


async def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    asked = post({"prompt": "the fox", "max_tokens": 5})
    last = get(b"/nothing", b"X-Request-Id: the-last", b"Connection: close")
    answer = await site.send(asked + get() + last)
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"200", b"200", b"404"]
    assert b"x-request-id: the-last" in answer


async def test_a_flood_of_pipelined_requests_is_cut_off(site: Site) -> None:
    site.text.engine.delay_s = 0.02
    answer = await site.send(post({"prompt": "the fox", "max_tokens": 5}) + get() * 5000)
    assert answer.count(b"HTTP/1.1 200 OK") == 1 + MAX_PIPELINED
    assert answer.endswith(b'{"status":"ok"}')
    assert site.cuts("too_many_pipelined") == 1


async def test_nonsense_behind_a_request_leaves_its_answer_whole(site: Site) -> None:
    site.text.engine.delay_s = 0.01
    body = {"prompt": "the fox", "max_tokens": 5, "stream": True}
    answer = await site.send(post(body) + b"nonsense\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"data: [DONE]\n\n" in answer
    assert b"malformed" not in answer


async def test_a_client_that_leaves_a_pipeline_cancels_what_runs(site: Site) -> None:
    site.text.engine.delay_s = 0.01
    _, writer = await site.connect()
    body = {"prompt": "the fox", "max_tokens": 200, "stream": True}
    writer.write(post(body) + get())
    await until(lambda: len(site.text.engine.live) == 1)
    writer.close()
    await until(lambda: len(site.text.engine.aborted) == 1)


# Too slow.


async def test_slow_senders_are_answered_408_and_silent_ones_closed(
    tokenizer_folder: Path,
) -> None:
    times = {"header_timeout_s": 0.5, "body_timeout_s": 0.5}
    async with listening(tokenizer_folder, **times) as site:

        async def drip(start: bytes, piece: bytes) -> bytes:
            reader, writer = await site.connect()
            answer = asyncio.create_task(read_all(reader))
            writer.write(start)
            async with asyncio.timeout(60):
                while not answer.done():
                    writer.write(piece)
                    await asyncio.wait({answer}, timeout=0.2)
            writer.close()
            return answer.result()

        head, line_ends, silent, body, rest = await asyncio.gather(
            drip(OPEN_HEAD, b"X: y\r\n"),
            drip(b"", b"\r\n"),
            site.send(),
            drip(post(b"", b"X: y", chunked=True), b"1\r\n \r\n"),
            drip(get(b"/health", b"Content-Length: 1000"), b" "),
        )
        assert error_of(head, 408)["code"] == "headers_timeout"
        assert error_of(line_ends, 408)["code"] == "headers_timeout"
        assert silent == b""
        assert error_of(body, 408)["code"] == "request_timeout"
        assert rest.startswith(b"HTTP/1.1 200 ")
        assert site.cuts("headers_timeout") == 2
        await until(lambda: not site.server.server_state.connections)


async def test_a_reader_that_has_stopped_gives_its_place_back(tokenizer_folder: Path) -> None:
    async with listening(tokenizer_folder, write_timeout_s=0.5) as site:
        state = site.text.state
        site.text.engine.delay_s = 0.001  # still at work when the reader is found to have stopped
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", site.port))
            client.sendall(post({"prompt": "a", "max_tokens": 5000, "stream": True}))
            await until(lambda: state.admission.num_in_flight() == 1)
            await until(lambda: site.cuts("reader_stopped") == 1)
            await until(lambda: state.admission.num_in_flight() == 0)
        assert len(site.text.engine.aborted) == 1
        ends = {"model_name": MODEL, "finished_reason": "abort"}
        registry = state.metrics.registry
        assert registry.get_sample_value("tandem_request_success_total", ends) == 1


# Times and numbers, by a clock that is ours.

LIMITS = ConnectionLimits(
    max_header_bytes=LIMIT,
    max_connections=3,
    header_timeout_s=10,
    body_timeout_s=30,
    write_timeout_s=60,
)


class Wire:
    """A transport that writes nowhere."""

    def __init__(self) -> None:
        self.written = b""
        self.num_unsent = 0
        self.closed = self.aborted = False

    def write(self, data: bytes) -> None:
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.num_unsent

    def is_closing(self) -> bool:
        return self.closed or self.aborted

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True

    def can_write_eof(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> None:
        return None


class Bench:
    """Connections of one server, over wires."""

    def __init__(self, text: TextServer) -> None:
        self.cuts: Counter[str] = Counter()
        self.state = ServerState()
        self._config = uvicorn_config(Settings(), text.app)
        self._config.load()

    def connect(self) -> tuple[ClientConnection, Wire]:
        connection = ClientConnection(
            LIMITS,
            lambda reason: self.cuts.update([reason]),
            config=self._config,
            server_state=self.state,
            app_state={},
        )
        wire = Wire()
        connection.connection_made(wire)
        return connection, wire

    def pass_time(self, seconds: float) -> None:
        check_connections(self.state.connections, asyncio.get_running_loop().time() + seconds)


@pytest.fixture
def bench(server: TextServer) -> Bench:
    return Bench(server)


async def test_the_time_for_headers(bench: Bench) -> None:
    connection, wire = bench.connect()
    connection.data_received(OPEN_HEAD)
    bench.pass_time(9.5)
    assert not wire.written
    bench.pass_time(10.5)
    assert error_of(wire.written, 408)
    connection.data_received(b"X: y\r\n")
    bench.pass_time(LINGER_S - 1)
    assert not wire.aborted
    bench.pass_time(LINGER_S + 1)
    assert wire.aborted


async def test_a_used_connection_may_rest_longer_than_a_new_one(bench: Bench) -> None:
    used, used_wire = bench.connect()
    used.data_received(get())
    bench.pass_time(KEEP_ALIVE_S + 1)
    assert not used_wire.closed  # while it is answered
    _, new_wire = bench.connect()
    await until(lambda: b'"ok"' in used_wire.written)
    bench.pass_time(10.5)
    assert new_wire.closed
    bench.pass_time(KEEP_ALIVE_S - 1)
    assert not used_wire.is_closing()
    bench.pass_time(KEEP_ALIVE_S + 1)
    assert used_wire.closed


def drained(step: int) -> int:
    return 100_000 - step


@pytest.mark.parametrize(
    ("unsent", "is_cut"),
    [
        (lambda step: 100_000, True),
        (lambda step: 10, True),
        (lambda step: 100_000 + step, True),
        (drained, False),
        (lambda step: 0, False),
    ],
    ids=["stands", "little", "grows", "shrinks", "none"],
)
async def test_unsent_bytes_must_get_fewer(
    bench: Bench, unsent: Callable[[int], int], is_cut: bool
) -> None:
    _, wire = bench.connect()
    wire.closed = True  # also while it waits for the end of what was written
    for step in range(65):
        wire.num_unsent = unsent(step)
        bench.pass_time(step)
        assert step > 55 or not wire.aborted
    assert wire.aborted == is_cut


async def test_an_unused_connection_makes_room_for_a_new_one(bench: Bench) -> None:
    connections = [bench.connect() for _ in range(3)]
    first, first_wire = connections[0]
    first._since_s -= 2
    _, fourth = bench.connect()
    assert first_wire.closed
    assert not fourth.closed
    assert [wire.closed for _, wire in connections[1:]] == [False, False]


async def test_a_crowd_gets_503_and_probes_pass(bench: Bench) -> None:
    for _ in range(3):
        bench.connect()
    connection, wire = bench.connect()
    connection.data_received(get(b"/v1/models"))
    error = error_of(wire.written, 503)
    assert error["code"] == "too_many_connections"
    assert "3 connections" in error["message"]
    connection, wire = bench.connect()
    connection.data_received(get(b"/health"))
    await until(lambda: wire.written.startswith(b"HTTP/1.1 200 "))
