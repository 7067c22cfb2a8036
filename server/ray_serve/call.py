"""One HTTP request to an app in another process: what is sent there, and what is returned."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Scope

from server.http.home import HOME

_SENT = (
    *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
    *("root_path", "headers", "client", "server"),
)
"""The parts of a scope that say what the client has asked; others belong to one process."""


@dataclass(frozen=True, slots=True)
class Head:
    """The status and the headers of an answer."""

    status: int
    headers: list[tuple[bytes, bytes]]


def sent_scope(scope: Scope) -> dict[str, Any]:
    """A scope in a form that another process can read."""
    return {name: scope[name] for name in _SENT if name in scope}


async def answer(
    app: ASGIApp, scope: Scope, body: bytes, home: str
) -> AsyncGenerator[Head | bytes, None]:
    """Yield an app's answer to a request: the head, then the body as it comes; what has come
    meanwhile is one part. If the generator is closed, the app sees that the client has left.

    Args:
        home: the name of this server in the ids that it makes.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    gone = asyncio.Event()

    async def receive() -> Message:
        if requests:
            return requests.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        HOME.set(home)
        try:
            await app(scope, receive, messages.put)
        finally:
            messages.put_nowait(None)

    running = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], [(k, v) for k, v in message["headers"]])
                continue
            parts = [message.get("body", b"")]
            while not messages.empty() and (more := messages.get_nowait()) is not None:
                parts.append(more.get("body", b""))
            if part := b"".join(parts):
                yield part
            if running.done() and messages.empty():
                break
        await running
    finally:
        gone.set()
        await asyncio.wait({running})
