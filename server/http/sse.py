"""Answers that take more than one write: streams, and work that ends when the client leaves.

`EventStream` owns its source: however the connection ends, the source is closed, which aborts
the request in the engine.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.errors import RequestAborted
from server.http.errors import error_facts, log_unexpected, openai_shape

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

_SLOW_CLIENT_WAIT_S = 0.05
"""Seconds between looks while a write waits for a client that reads slowly."""

T = TypeVar("T")


def event(data: bytes) -> bytes:
    """A server-sent event; `data` is JSON and so holds no line break."""
    return b"data: " + data + b"\n\n"


def named_event(name: str, data: bytes) -> bytes:
    """A server-sent event with a name."""
    return b"event: " + name.encode() + b"\n" + event(data)


def failure_event(error: BaseException) -> bytes:
    """The event that ends a failed stream."""
    return event(openai_shape(error_facts(error)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Framing:
    """How a stream is written, whatever its events contain.

    Attributes:
        done: sent last, also after a failure.
        ping: sent after silence; empty if nothing may be sent.
        failure: makes the event for an exception.
    """

    media_type: str
    done: bytes
    ping: bytes
    failure: Callable[[BaseException], bytes]


OPENAI_FRAMING = Framing(
    media_type="text/event-stream", done=DONE, ping=PING, failure=failure_event
)


class EventStream(Response):
    """Sends events until they end, fail, or the client leaves.

    A failure becomes an event of its own; with OpenAI's framing `[DONE]` is always the last, and a
    comment goes out after every `heartbeat_s` of silence, so that proxies keep the connection.

    Args:
        events: framed events. Closed in any case.
        close: called once at the end, also if nothing could be sent.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        close: Callable[[], Awaitable[None]],
        *,
        heartbeat_s: float,
        headers: Mapping[str, str],
        framing: Framing = OPENAI_FRAMING,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = framing.media_type
        self._framing = framing
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no", **headers})
        self._events = events
        self._first: asyncio.Task[bytes | None] | None = None
        self._close = close
        self._heartbeat_s = heartbeat_s
        self._last_sent_s = 0.0
        self._sending = False

    async def begin(self, wait_s: float) -> None:
        """Wait for the first event before anything is sent, but not longer than `wait_s`.

        Raises:
            Exception: the events failed. The stream is closed, and nothing may be sent.
        """
        self._first = asyncio.create_task(_next(self._events))
        try:
            await asyncio.wait({self._first}, timeout=wait_s)
            if self._first.done():
                self._first.result()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """End the source, which aborts what is unfinished."""
        first, self._first = self._first, None  # its error's frames would hold this
        try:
            if first is not None:
                await _cancel(first)
            await self._events.aclose()
        finally:
            await self._close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._last_sent_s = time.monotonic()
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            sender = asyncio.create_task(self._send_all(send))
            await _first_to_end(sender, asyncio.create_task(self._watch(receive, send)))
            if not sender.cancelled():
                sender.result()
        finally:
            await self.aclose()

    async def _send_all(self, send: Send) -> None:
        async for data in self._all_events():
            await self._send(send, data)
        self._sending = True  # no ping may follow the end
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _all_events(self) -> AsyncGenerator[bytes, None]:
        try:
            if self._first is not None:
                first = await self._first
                if first:
                    yield first
            async for data in self._events:
                yield data
        except Exception as error:
            log_unexpected(error)
            yield self._framing.failure(error)
        if self._framing.done:
            yield self._framing.done

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Return when the client leaves; ping while there is silence."""
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            while not leaving.done():
                left_s = self._last_sent_s + self._heartbeat_s - time.monotonic()
                if left_s <= 0 and not self._sending and self._framing.ping:
                    await self._send(send, self._framing.ping)
                else:
                    wait_s = left_s if left_s > 0 else _SLOW_CLIENT_WAIT_S
                    await asyncio.wait({leaving}, timeout=wait_s)
        finally:
            await _cancel(leaving)

    async def _send(self, send: Send, data: bytes) -> None:
        self._sending = True
        await send({"type": "http.response.body", "body": data, "more_body": True})
        self._sending = False
        self._last_sent_s = time.monotonic()


async def _next(events: AsyncGenerator[bytes, None]) -> bytes | None:
    return await anext(events, None)


async def until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects earlier.

    Raises:
        RequestAborted: the client left.
    """
    task = asyncio.create_task(work)
    await _first_to_end(task, asyncio.create_task(_disconnected(receive)))
    try:
        if task.cancelled():
            raise RequestAborted("the client closed the connection")
        return task.result()
    finally:
        del task  # its error would hold this frame, and this frame would hold the error


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first_to_end(*tasks: asyncio.Task[Any]) -> None:
    """Wait for the first task to end and cancel the others; none is running afterwards."""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel(*tasks)


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
