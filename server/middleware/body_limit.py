"""Refuses bodies above the limit with 413: at once by Content-Length, otherwise while they arrive.

A client that is still sending when the connection closes would see a reset instead of the answer.
The rest of the body is therefore read and dropped for a while before the connection ends.
"""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.errors import INVALID_REQUEST, error_response
from server.http.scope import get_header

_LINGER_S = 5.0
_LINGER_FACTOR = 4
"""How many times the limit is read and dropped at most."""


class BodyTooLarge(HTTPException):
    """Raised from `receive` into the route; FastAPI lets HTTP exceptions through."""


class BodyLimitMiddleware:
    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._message = f"the request body is larger than {max_body_bytes} bytes; send less"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        length = get_header(scope, b"content-length")
        if length is not None and length.isdigit() and int(length) > self._max_body_bytes:
            await self._refuse(scope, receive, send)
            return
        await self._limit(scope, receive, send)

    async def _limit(self, scope: Scope, receive: Receive, send: Send) -> None:
        num_bytes = 0
        started = False
        cut_off = False

        async def receive_limited() -> Message:
            nonlocal num_bytes, cut_off
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_body_bytes:
                cut_off = message.get("more_body", False)
                raise BodyTooLarge(413, self._message, {"Connection": "close"})
            return message

        async def send_and_look(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            if cut_off and message["type"] == "http.response.body":
                await self._send_last(message, receive, send)
            else:
                await send(message)

        try:
            await self.app(scope, receive_limited, send_and_look)
        except BodyTooLarge:
            if started:
                raise
            await self._answer(scope, receive, send_and_look)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_slowly(message: Message) -> None:
            if message["type"] == "http.response.body":
                await self._send_last(message, receive, send)
            else:
                await send(message)

        await self._answer(scope, receive, send_slowly)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = error_response(
            413,
            self._message,
            INVALID_REQUEST,
            code="request_too_large",
            headers={"Connection": "close"},
        )
        await response(scope, receive, send)

    async def _send_last(self, message: Message, receive: Receive, send: Send) -> None:
        """Send the answer's body, but end the response only after lingering."""
        await send({**message, "more_body": True})
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._discard(receive)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard(self, receive: Receive) -> None:
        num_bytes = 0
        while num_bytes <= _LINGER_FACTOR * self._max_body_bytes:
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body"):
                return
