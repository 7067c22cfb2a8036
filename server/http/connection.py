"""A client's connection: what it may send and how long it may take, before any key is seen.

uvicorn's own protocol keeps headers of any size and waits forever. This one answers 431, 414 or 408
and closes; it ends connections whose reader has stopped, which cancels their request. `check` must
be called about once a second. Bodies are bounded by `BodyLimitMiddleware` and `SlowBodyMiddleware`.
"""

import enum
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Self

import httptools
import structlog
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from server.http.errors import INVALID_REQUEST, RATE_LIMIT, ErrorFacts, openai_shape
from server.settings import Settings

KEEP_ALIVE_S = 75
"""Seconds to keep an idle connection: longer than clients keep theirs in a pool, so that the client
closes first."""
MAX_NUM_HEADERS = 256
MAX_URL_BYTES = 16 << 10
MAX_PIPELINED = 16
"""Requests of one connection that may wait for their turn; each takes 200 times its bytes in
memory."""
LINGER_S = 5.0
"""Seconds to wait for the client at the end: one that is still sending when we close would see a
reset in place of the answer."""

_UNUSED_S = 1.0
_PROBES = (b"/health", b"/ping", b"/ready")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The operator's limits, from the settings of the same names."""

    max_header_bytes: int
    max_connections: int
    header_timeout_s: float
    body_timeout_s: float
    write_timeout_s: float

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            settings.max_header_bytes,
            settings.max_connections,
            settings.header_timeout_s,
            settings.body_timeout_s,
            settings.write_timeout_s,
        )


class Refusal(Exception):
    """Ends the parsing, and with it the connection. The metric uses `code` as its reason."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class _Phase(enum.Enum):
    """What the connection expects from the client."""

    IDLE = enum.auto()
    """A new request, if the client wants one."""
    HEAD = enum.auto()
    """The rest of a request line and its headers."""
    BODY = enum.auto()
    """The rest of a body, and its trailers."""
    CLOSE = enum.auto()
    """Reading of our last answer. What the client sends is dropped."""


class _OldCycle(RequestResponseCycle):
    """An answer to an HTTP/1.0 client, which does not know chunks: an answer of unknown length ends
    with the connection."""

    _ends_with_connection = False

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message.get("headers", ())}
            self._ends_with_connection = b"content-length" not in names
            if self._ends_with_connection:
                self.chunked_encoding = self.keep_alive = False
        elif message["type"] == "http.response.body" and self._ends_with_connection:
            self.expected_content_length = len(message.get("body", b""))
        await super().send(message)


class ClientConnection(HttpToolsProtocol):
    """One connection of a client.

    Invariant: what one connection makes us keep, without a body, is at most `max_header_bytes`
    and one read from the socket, times `MAX_PIPELINED`.

    Args:
        count_cut: called with the reason when the connection ends for what the client did.
        uvicorn_arguments: the arguments of uvicorn's protocols.
    """

    def __init__(
        self, limits: ConnectionLimits, count_cut: Callable[[str], None], **uvicorn_arguments: Any
    ) -> None:
        super().__init__(**uvicorn_arguments)
        self._limits = limits
        self._count_cut = count_cut
        self._refusal: Refusal | None = None
        self._unanswered: deque[RequestResponseCycle] = deque()
        self._num_header_bytes = 0
        self._num_headers = 0
        self._num_unparsed_bytes = 0
        self._heard_something = False
        self._is_crowded = False
        self._progress_s = self.loop.time()
        self._num_unsent_bytes = 0
        self._enter(_Phase.IDLE)

    def may_make_room(self) -> bool:
        """Whether the connection has been unused for a moment; clients expect idle connections to
        end."""
        return (
            self._phase is _Phase.IDLE
            and not self._unanswered
            and not self.transport.is_closing()
            and self.loop.time() - self._since_s > _UNUSED_S
        )

    def check(self, now_s: float) -> None:
        """End the connection if its client is too slow. `now_s` is the event loop's time."""
        self._check_reader(now_s)
        if self.transport.is_closing() or self._unanswered:
            return
        waited_s = now_s - self._since_s
        if self._phase is _Phase.CLOSE and waited_s > LINGER_S:
            self.transport.abort()
        elif self._phase is _Phase.IDLE and waited_s > self._idle_timeout_s():
            self.transport.close()
        elif self._phase is _Phase.HEAD and waited_s > self._limits.header_timeout_s:
            allowed_s = f"{self._limits.header_timeout_s:g}"
            message = f"the headers did not arrive within {allowed_s} s; send them faster"
            self._refuse(Refusal(408, "headers_timeout", message))
        elif self._phase is _Phase.BODY and waited_s > self._limits.body_timeout_s:
            self._cut("body_timeout")  # the request was answered long ago

    # Called by uvicorn's server and the transport.

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if self._num_connections() > self._limits.max_connections:
            self._is_crowded = not _close_an_idle_one(self.connections)

    def data_received(self, data: bytes) -> None:
        if self._phase is _Phase.CLOSE:
            return
        self._unset_keepalive_if_required()
        if self._phase is _Phase.IDLE:
            self._enter(_Phase.HEAD)
        self._heard_something = False
        try:
            self.parser.feed_data(data)
            self._count_unparsed(len(data))
        except httptools.HttpParserUpgrade:
            pass  # the request is answered as if it had not asked for another protocol
        except httptools.HttpParserError:
            self._refuse(
                self._refusal
                or Refusal(
                    400,
                    "malformed_http",
                    "the request is not valid HTTP; check what the client sends",
                )
            )
        except Refusal as refusal:
            self._refuse(refusal)

    def resume_writing(self) -> None:
        self._progress_s = self.loop.time()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disconnect_requests()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        self._unanswered.popleft()
        self._since_s = self.loop.time()
        super().on_response_complete()

    # Called by the parser. An exception stops the parser and comes out of `feed_data` as a parser
    # error.

    def on_message_begin(self) -> None:
        if len(self._unanswered) > MAX_PIPELINED:
            message = (
                f"more than {MAX_PIPELINED} requests wait on one connection; wait for answers "
                "before sending more"
            )
            self._stop_parsing(429, "too_many_pipelined", message)
        super().on_message_begin()
        self._enter(_Phase.HEAD)
        self._num_header_bytes = self._num_headers = 0
        self._heard_something = True

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            message = f"the URL has more than {MAX_URL_BYTES} bytes; send large data in the body"
            self._stop_parsing(414, "url_too_long", message)
        self._count_header(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > MAX_NUM_HEADERS:
            message = f"the request has more than {MAX_NUM_HEADERS} headers; send fewer"
            self._stop_parsing(431, "headers_too_large", message)
        self._count_header(len(name) + len(value) + len(": \r\n"))
        if self._phase is _Phase.HEAD:  # a trailer must not pass for a header that a proxy checked
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._is_crowded and self._num_connections() > self._limits.max_connections:
            self._refuse_crowded()
        self._check_host()
        super().on_headers_complete()
        if self.scope["http_version"] == "1.0":
            self.cycle.__class__ = _OldCycle
        self._unanswered.append(self.cycle)
        self._enter(_Phase.BODY)
        self._heard_something = True

    def on_body(self, body: bytes) -> None:
        self._heard_something = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._enter(_Phase.IDLE)
        self._heard_something = True

    # Bounds.

    def _count_header(self, num_bytes: int) -> None:
        self._heard_something = True
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > self._limits.max_header_bytes:
            self._stop_parsing(431, "headers_too_large", self._too_large())

    def _count_unparsed(self, num_bytes: int) -> None:
        """Count bytes of an unfinished header, which the parser keeps without calling us."""
        self._num_unparsed_bytes += num_bytes
        if self._heard_something:
            self._num_unparsed_bytes = 0
        if self._num_header_bytes + self._num_unparsed_bytes > self._limits.max_header_bytes:
            raise Refusal(431, "headers_too_large", self._too_large())

    def _too_large(self) -> str:
        limit = self._limits.max_header_bytes
        return f"the headers have more than {limit} bytes in total; send fewer or shorter ones"

    def _refuse_crowded(self) -> None:
        """Refuse the request, unless it is a probe: a full server must not be restarted."""
        if not httptools.parse_url(self.url).path.endswith(_PROBES):
            limit = self._limits.max_connections
            message = f"{limit} connections are open, which is this server's limit; try again later"
            self._stop_parsing(503, "too_many_connections", message)

    def _check_host(self) -> None:
        """Refuse what RFC 9112, section 3.2, refuses, as proxies may read it otherwise."""
        num_hosts = sum(name == b"host" for name, _ in self.headers)
        if num_hosts > 1 or (num_hosts == 0 and self.parser.get_http_version() == "1.1"):
            message = f"the request has {num_hosts} Host headers; send one"
            self._stop_parsing(400, "malformed_http", message)

    def _check_reader(self, now_s: float) -> None:
        """Cut the connection if its client has stopped reading, even if it is about to close."""
        num_unsent = self.transport.get_write_buffer_size()
        if num_unsent == 0 or num_unsent < self._num_unsent_bytes:
            self._progress_s = now_s
        self._num_unsent_bytes = num_unsent
        if now_s - self._progress_s > self._limits.write_timeout_s:
            self._cut("reader_stopped")

    def _idle_timeout_s(self) -> float:
        return self._limits.header_timeout_s if self.cycle is None else KEEP_ALIVE_S

    def _num_connections(self) -> int:
        return len(self.connections)

    # Ways to end a connection.

    def _enter(self, phase: _Phase) -> None:
        self._phase = phase
        self._since_s = self.loop.time()

    def _stop_parsing(self, status: int, code: str, message: str) -> None:
        self._refusal = Refusal(status, code, message)
        raise self._refusal

    def _cut(self, reason: str) -> None:
        log.debug("connection cut", reason=reason)
        self._count_cut(reason)
        self._disconnect_requests()
        self.transport.abort()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with the refusal. If complete requests still wait for answers, end after those
        instead."""
        log.debug("connection refused", status=refusal.status, reason=refusal.code)
        self._count_cut(refusal.code)
        is_in_body = self._phase is _Phase.BODY
        self._enter(_Phase.CLOSE)
        if self._unanswered and not is_in_body:
            self._unanswered[-1].keep_alive = False
            return
        num_owed = sum(not cycle.response_started for cycle in self._unanswered)
        may_answer = not is_in_body or (num_owed == 1 == len(self._unanswered))
        self._disconnect_requests()
        if may_answer:
            self._answer(refusal)
        else:
            self.transport.close()

    def _disconnect_requests(self) -> None:
        """Tell all requests that the client has left: uvicorn would tell only the newest."""
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()
        self._unanswered.clear()
        self.pipeline.clear()

    def _answer(self, refusal: Refusal) -> None:
        kind = RATE_LIMIT if refusal.status in (429, 503) else INVALID_REQUEST
        body = openai_shape(ErrorFacts(refusal.status, refusal.message, kind, code=refusal.code))
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        self.transport.write(STATUS_LINE[refusal.status] + lines + b"\r\n" + body)
        if self.transport.can_write_eof():
            self.transport.write_eof()


def check_connections(connections: Iterable[Any], now_s: float) -> None:
    """Call `ClientConnection.check` for each connection."""
    for connection in list(connections):
        connection.check(now_s)


def _close_an_idle_one(connections: Iterable[Any]) -> bool:
    """Close an idle connection, so that a new one can be accepted."""
    for connection in connections:
        if connection.may_make_room():
            connection.transport.close()
            return True
    return False
