"""Sends a run's answer of any kind: whole or as a stream, closed when the client leaves.

Each kind of model has its own subclasses of `Reply`, which know the shapes of its answers.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from server.http.engine_run import EngineRun
from server.http.log_fields import annotate
from server.http.shape import Shape
from server.http.sse import EventStream, until_disconnect


class Reply(ABC):
    """A run in the shape of its endpoint. Call either `whole` or `events`, once."""

    def __init__(self, run: EngineRun, shape: Shape | None = None) -> None:
        self._run = run
        self._shape = shape or Shape()

    @abstractmethod
    async def whole(self) -> bytes:
        """The whole answer."""

    @abstractmethod
    def events(self) -> AsyncGenerator[bytes, None]:
        """Framed events as the results arrive, without the final event."""

    def log_fields(self) -> dict[str, Any]:
        """Fields about the reply for the access log, once the reply is over."""
        return {}

    @property
    def may_be_refused(self) -> bool:
        """Whether the engine may find a fault in the request only later. A stream then begins with
        its first event, so that an error gets a status of its own."""
        return False

    async def send(
        self,
        request: Request,
        *,
        stream: bool | None,
        heartbeat_s: float,
        headers: Mapping[str, str],
    ) -> Response:
        """Answer whole or as a stream. Either way the run is closed when the client leaves.

        Raises:
            EngineError: the engine failed before the first byte.
        """

        async def close() -> None:
            await self._run.aclose()
            annotate(request, **self.log_fields())

        if stream:
            events = EventStream(
                self.events(),
                close,
                heartbeat_s=heartbeat_s,
                headers=headers,
                framing=self._shape.framing,
            )
            if self.may_be_refused:
                await until_disconnect(request.receive, events.begin(heartbeat_s))
            return events
        try:
            body = await until_disconnect(request.receive, self.whole())
        finally:
            await close()
        return Response(body, media_type="application/json", headers=headers)


class LaterReply(Reply):
    """The reply of a request that the engine does not have yet, such as one whose pictures wait for
    memory. Its stream begins after one heartbeat at the latest.

    Args:
        prepare: sends the request to the engine and gives the reply. Called once.
    """

    def __init__(
        self,
        run: EngineRun,
        prepare: Callable[[], Coroutine[Any, Any, Reply]],
        shape: Shape | None = None,
    ) -> None:
        super().__init__(run, shape)
        self._prepare = prepare

    async def whole(self) -> bytes:
        reply = await self._run.perform(self._prepare())
        return await reply.whole()

    async def events(self) -> AsyncGenerator[bytes, None]:
        reply = await self._run.perform(self._prepare())
        yield b""  # nothing can be refused from here on, so the stream may begin
        async with aclosing(reply.events()) as events:
            async for event in events:
                yield event

    @property
    def may_be_refused(self) -> bool:
        return True
