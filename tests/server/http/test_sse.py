"""Event streams and what ends them, against the bare ASGI interface."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import pytest
from starlette.types import Message

from engine.errors import EngineDead, RequestAborted
from server.http import sse
from server.http.sse import DONE, PING, EventStream, event, until_disconnect
from tests.helpers.server.fake_server import until


class Connection:
    """An ASGI connection whose client reads everything until it leaves."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self.send_error: Exception | None = None
        self.closed = 0
        self.slow = asyncio.Event()
        self.slow.set()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.send_error is not None and message["type"] == "http.response.body":
            raise self.send_error
        await self.slow.wait()
        self.sent.append(message)

    async def close(self) -> None:
        self.closed += 1

    @property
    def body(self) -> bytes:
        return b"".join(m["body"] for m in self.sent if m["type"] == "http.response.body")

    def response(
        self,
        events: AsyncGenerator[bytes, None],
        heartbeat_s: float = 15,
        framing: sse.Framing = sse.OPENAI_FRAMING,
    ) -> EventStream:
        return EventStream(
            events,
            self.close,
            heartbeat_s=heartbeat_s,
            headers={"X-Test": "yes"},
            framing=framing,
        )

    async def run(
        self,
        events: AsyncGenerator[bytes, None],
        heartbeat_s: float = 15,
        framing: sse.Framing = sse.OPENAI_FRAMING,
    ) -> None:
        response = self.response(events, heartbeat_s, framing)
        await response({"type": "http"}, self.receive, self.send)


@pytest.fixture
def connection() -> Connection:
    return Connection()


async def items(*data: bytes, then: Any = None) -> AsyncGenerator[bytes, None]:
    for item in data:
        yield event(item)
    if isinstance(then, Exception):
        raise then
    if then is not None:
        await then.wait()


LINES = sse.Framing(
    media_type="application/x-ndjson",
    done=b"",
    ping=b"",
    failure=lambda error: json.dumps({"oops": str(error)}).encode() + b"\n",
)


async def test_another_framing_has_neither_pings_nor_an_end(connection: Connection) -> None:

    async def lines() -> AsyncGenerator[bytes, None]:
        yield b"1\n"
        await asyncio.sleep(0.05)
        raise EngineDead("the worker ended")

    await connection.run(lines(), heartbeat_s=0.001, framing=LINES)
    assert connection.body == b'1\n{"oops": "the worker ended"}\n'
    headers = dict(connection.sent[0]["headers"])
    assert headers[b"content-type"] == b"application/x-ndjson"
    assert connection.closed == 1


async def test_events_then_done(connection: Connection) -> None:
    await connection.run(items(b"1", b"2"))
    assert connection.body == b"data: 1\n\ndata: 2\n\n" + DONE
    start, *_, last = connection.sent
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-cache"
    assert headers[b"x-test"] == b"yes"
    assert b"content-length" not in headers
    assert last["more_body"] is False
    assert all(m["more_body"] for m in connection.sent[1:-1])
    assert connection.closed == 1


@pytest.mark.parametrize("num_before", [0, 2])
async def test_a_failure_is_an_event_and_done_still_comes(
    connection: Connection, num_before: int
) -> None:
    await connection.run(items(*[b"1"] * num_before, then=EngineDead("the engine died")))
    *before, error, done = connection.body.split(b"\n\n")[:-1]
    assert len(before) == num_before
    assert done + b"\n\n" == DONE
    body = json.loads(error.removeprefix(b"data: "))
    assert body["error"]["code"] == "engine_dead"
    assert body["error"]["message"] == "the engine died"
    assert connection.closed == 1


async def test_a_failure_at_the_beginning_can_be_waited_for(connection: Connection) -> None:
    response = connection.response(items(then=EngineDead("the engine died")))
    with pytest.raises(EngineDead):
        await response.begin(60)
    assert connection.closed == 1
    assert not connection.sent


@pytest.mark.parametrize("wait_s", [0.0, 60.0])
@pytest.mark.parametrize("num_events", [0, 1, 3])
async def test_what_has_begun_loses_nothing(
    connection: Connection, wait_s: float, num_events: int
) -> None:
    response = connection.response(items(*[b"1"] * num_events))
    await response.begin(wait_s)
    assert not connection.sent
    await response({"type": "http"}, connection.receive, connection.send)
    assert connection.body == b"data: 1\n\n" * num_events + DONE
    assert connection.closed == 1


async def test_the_client_leaving_before_the_beginning_closes_the_source(
    connection: Connection,
) -> None:
    response = connection.response(items(then=asyncio.Event()))
    work = until_disconnect(connection.receive, response.begin(60))
    connection.gone.set()
    with pytest.raises(RequestAborted):
        await work
    assert connection.closed == 1


async def test_a_stream_may_end_before_its_beginning_has_come(connection: Connection) -> None:
    response = connection.response(items(then=asyncio.Event()))
    await response.begin(0.0)
    connection.gone.set()
    await response({"type": "http"}, connection.receive, connection.send)
    assert connection.closed == 1


async def test_an_unexpected_failure_shows_nothing(connection: Connection) -> None:
    await connection.run(items(then=RuntimeError("secret")))
    assert b"secret" not in connection.body
    assert b"internal_error" in connection.body
    assert connection.body.endswith(DONE)


async def test_the_client_leaving_closes_the_source_at_once(connection: Connection) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncGenerator[bytes, None]:
        try:
            yield event(b"1")
            await asyncio.sleep(60)
        finally:
            ended.set()

    task = asyncio.create_task(connection.run(endless()))
    await until(lambda: connection.body == b"data: 1\n\n")
    connection.gone.set()
    async with asyncio.timeout(30):
        await task
    assert ended.is_set()
    assert connection.closed == 1
    assert connection.body == b"data: 1\n\n"


async def test_a_client_that_left_before_the_start_still_closes_the_source(
    connection: Connection,
) -> None:
    connection.gone.set()
    await connection.run(items(then=asyncio.Event()))
    assert connection.closed == 1


async def test_cancelling_the_server_closes_the_source(connection: Connection) -> None:
    task = asyncio.create_task(connection.run(items(b"1", then=asyncio.Event())))
    await until(lambda: connection.body == b"data: 1\n\n")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert connection.closed == 1


async def test_a_broken_connection_closes_the_source(connection: Connection) -> None:
    connection.send_error = OSError("broken pipe")
    with pytest.raises(OSError, match="broken"):
        await connection.run(items(b"1"))
    assert connection.closed == 1


async def test_silence_is_filled_with_comments(connection: Connection) -> None:
    finish = asyncio.Event()
    task = asyncio.create_task(connection.run(items(b"1", then=finish), heartbeat_s=0.02))
    await until(lambda: connection.body.count(PING) >= 2)
    finish.set()
    await task
    assert connection.body.endswith(PING + DONE)


async def test_no_comment_while_events_flow(connection: Connection) -> None:

    async def steady() -> AsyncGenerator[bytes, None]:
        for _ in range(12):
            await asyncio.sleep(0.1)
            yield event(b"1")

    await connection.run(steady(), heartbeat_s=1.0)
    assert PING not in connection.body


async def test_a_slow_reader_gets_no_comment_in_the_middle_of_a_write(
    connection: Connection,
) -> None:
    connection.slow.clear()
    task = asyncio.create_task(connection.run(items(b"1"), heartbeat_s=0.01))
    await asyncio.sleep(0.08)
    connection.slow.set()
    await task
    assert connection.body == b"data: 1\n\n" + DONE


async def test_no_task_is_left_behind() -> None:
    before = asyncio.all_tasks()
    connection = Connection()
    await connection.run(items(b"1"))
    connection.gone.set()
    await connection.run(items(then=asyncio.Event()))
    assert asyncio.all_tasks() == before


async def test_work_ends_when_the_client_leaves(connection: Connection) -> None:
    cancelled = asyncio.Event()

    async def work() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    asyncio.get_running_loop().call_later(0.01, connection.gone.set)
    with pytest.raises(RequestAborted):
        await until_disconnect(connection.receive, work())
    assert cancelled.is_set()


async def test_work_that_ends_or_fails_is_passed_on() -> None:
    async def result(value: Callable[[], str]) -> str:
        await asyncio.sleep(0)
        return value()

    def fail() -> str:
        raise KeyError("x")

    receive = Connection().receive
    assert await until_disconnect(receive, result(lambda: "fine")) == "fine"
    with pytest.raises(KeyError):
        await until_disconnect(receive, result(fail))


async def test_tens_of_thousands_of_events_a_second() -> None:
    num_events = 20_000

    async def burst() -> AsyncGenerator[bytes, None]:
        for _ in range(num_events):
            yield event(b"{}")

    connection = Connection()
    start_s = time.thread_time()
    await connection.run(burst())
    assert time.thread_time() - start_s < 4  # an idle core takes 0.05
    assert connection.body.count(b"data: {}") == num_events
    assert sse.DONE in connection.body
