"""Refuses bodies that take too long with 408, so that no client holds a connection forever.

A body may take `timeout_s`, and a second more for every `min_bytes_per_s` that have come: large
ones over slow lines pass, and drops do not. Time counts while a route waits for the body.
"""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class SlowBodyMiddleware:
    def __init__(self, app: ASGIApp, timeout_s: float, min_bytes_per_s: int) -> None:
        self.app = app
        self._timeout_s = timeout_s
        self._min_bytes_per_s = min_bytes_per_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        deadline_s: float | None = None
        num_bytes = 0
        has_ended = False

        async def receive_in_time() -> Message:
            nonlocal deadline_s, num_bytes, has_ended
            if has_ended:  # only the client's leaving can still come
                return await receive()
            if deadline_s is None:
                deadline_s = loop.time() + self._timeout_s
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError:
                raise self._refusal(num_bytes) from None
            num_more = len(message.get("body", b""))
            num_bytes += num_more
            deadline_s += num_more / self._min_bytes_per_s
            has_ended = not message.get("more_body", False)
            return message

        await self.app(scope, receive_in_time, send)

    def _refusal(self, num_bytes: int) -> HTTPException:
        """The refusal, as an HTTP exception: FastAPI lets those through that come from
        `receive`."""
        return HTTPException(
            408,
            f"only {num_bytes} bytes of the body came in time; a body may take "
            f"{self._timeout_s:g} s, and one second more for every {self._min_bytes_per_s} bytes; "
            "send it faster, or send less",
            {"Connection": "close"},
        )
