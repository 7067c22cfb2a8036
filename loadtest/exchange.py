"""Sends one HTTP/1.1 POST over asyncio, so cheaply that the server under test can share the cores.

Owns connections and response framing (httptools does the parsing). Does not interpret bodies: they
go to a callback, piece by piece, with the time of arrival.
"""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

import httptools

OnBody: TypeAlias = Callable[[int, bytes, float], None]
"""Called with (status, piece of the body, `time.perf_counter()` when its segment was read)."""


class ExchangeError(Exception):
    """The server could not be reached, left early, or did not speak HTTP."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The address of a server, from a base URL such as `http://127.0.0.1:8000/v1`."""

    host: str
    port: int
    path: str
    tls: bool

    @classmethod
    def parse(cls, url: str) -> "Origin":
        """Raises ValueError when `url` is not an http(s) URL with a host."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// URL")
        tls = parts.scheme == "https"
        port = parts.port or (443 if tls else 80)
        return cls(parts.hostname, port, parts.path.rstrip("/"), tls)

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes) -> bytes:
        """The bytes of one request; `path` is appended to the base URL's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.path}{path} HTTP/1.1", f"Host: {host}:{self.port}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Content-Length: {len(body)}", "", ""]
        return "\r\n".join(lines).encode() + body


class Connection(asyncio.Protocol):
    """A connection that sends one request at a time.

    Also the callback object of its httptools parser (the `on_*` methods without a time).
    """

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._done: asyncio.Future[int] | None = None
        self._on_body: OnBody | None = None
        self._read_at = 0.0
        self._status = 0
        self._framed = False
        self.reusable = False

    async def send(self, request: bytes, on_body: OnBody) -> int:
        """Send one request and return the status once the whole answer has arrived.

        Raises ExchangeError when the connection ends first or the answer is not HTTP.
        """
        if self._transport is None or self._transport.is_closing():
            raise ExchangeError("the connection was closed before the request was sent")
        self._done = asyncio.get_running_loop().create_future()
        self._on_body = on_body
        self._status = 0
        self._framed = False
        self._transport.write(request)
        try:
            return await self._done
        finally:
            self._done = None
            self._on_body = None

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self.reusable = True

    def data_received(self, data: bytes) -> None:
        self._read_at = time.perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        if self._done is None or self._done.done():
            return
        if self._status and not self._framed and exc is None:
            self._done.set_result(self._status)  # a body without a length ends with the connection
        else:
            when = "within the answer" if self._status else "before the answer"
            self._fail(f"connection closed {when}" + (f" ({exc})" if exc else ""))

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        if self._on_body is not None:
            self._on_body(self._status, data, self._read_at)

    def on_message_complete(self) -> None:
        if self._status < 200:
            return
        self.reusable = self.reusable and self._parser.should_keep_alive()
        if self._done is not None and not self._done.done():
            self._done.set_result(self._status)

    def _fail(self, reason: str) -> None:
        self.reusable = False
        if self._done is not None and not self._done.done():
            self._done.set_exception(ExchangeError(reason))


class Connector:
    """Opens connections to one origin; keeps idle ones when `keep_alive` is on."""

    def __init__(self, origin: Origin, *, keep_alive: bool = False) -> None:
        self.origin = origin
        self._keep_alive = keep_alive
        self._idle: list[Connection] = []
        self._address: str | None = None
        self._tls = ssl.create_default_context() if origin.tls else None

    async def send(self, request: bytes, on_body: OnBody) -> int:
        """Send a request and read the answer, on a new connection or an idle one that was kept.

        Raises ExchangeError; never repeats a request by itself, so that failures are seen.
        """
        connection = await self._take()
        try:
            status = await connection.send(request, on_body)
        except BaseException:
            connection.close()
            raise
        if self._keep_alive and connection.reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return status

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        try:
            return await self._open()
        except OSError as error:
            raise ExchangeError(f"cannot connect: {error.strerror or error}") from error

    async def _open(self) -> Connection:
        loop = asyncio.get_running_loop()
        host = self._address or self.origin.host
        transport, connection = await loop.create_connection(
            Connection,
            host,
            self.origin.port,
            ssl=self._tls,
            server_hostname=self.origin.host if self._tls else None,
        )
        # The name is looked up only once, because a lookup would add to the latency.
        self._address = transport.get_extra_info("peername")[0]
        return connection
