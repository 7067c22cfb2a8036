"""Sends a request whose connection may end before its answer."""

import asyncio
from collections.abc import MutableMapping
from typing import Any

import httpx
from fastapi import FastAPI


class Caller:
    """Sends one POST request to an app.

    Attributes:
        status, answer: the status and the beginning of the answer, once they have come.

    Args:
        fields: as httpx takes them.
    """

    def __init__(self, app: FastAPI, path: str, **fields: Any) -> None:
        self._app = app
        self._request = httpx.Request("POST", f"http://test{path}", **fields)
        self._content = self._request.read()
        self.status = 0
        self.answer = b""

    async def send(self, leaving: asyncio.Event) -> None:
        """Send the request and wait for the answer; the client leaves when it is told to."""
        messages = [{"type": "http.request", "body": self._content, "more_body": False}]

        async def receive() -> MutableMapping[str, Any]:
            if messages:
                return messages.pop()
            await leaving.wait()
            return {"type": "http.disconnect"}

        async def send(message: MutableMapping[str, Any]) -> None:
            self.status = message.get("status", self.status)
            self.answer += message.get("body", b"")[:1000]

        url = self._request.url
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "headers": [(k.lower(), v) for k, v in self._request.headers.raw],
            "scheme": "http",
            "path": url.path,
            "raw_path": url.raw_path,
            "query_string": b"",
            "server": ("test", 80),
            "client": ("test", 1),
            "root_path": "",
        }
        await self._app(scope, receive, send)
