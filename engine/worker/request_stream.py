"""Carries the events of running requests from the engine to whoever awaits them."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Container, Iterable
from typing import Any, Generic, Protocol

from engine.contract.request import Event, EventT, Request
from engine.errors import EngineError

Abort = Callable[[str, int | None], None]
"""Tells the engine to end a request, given its id, or only one of its completions, given its
index."""


class StreamWatcher(Protocol):
    """Sees what happens to a request, also where nobody reads its events."""

    def note(self, event: Event) -> None:
        """Take in an event."""
        ...

    def end(self) -> None:
        """Take in that the request has ended, in whatever way."""
        ...


class RequestStream(Generic[EventT]):
    """The events of one request, in order. It ends after each of its completions has finished."""

    def __init__(self, request: Request[EventT], table: "StreamTable") -> None:
        self.request_id = request.request_id
        self.adapter_names = request.adapter_names
        self._unfinished = set(range(request.num_completions))
        self._events: deque[EventT | EngineError] = deque()
        self._arrived = asyncio.Event()
        self._table = table
        self._closed = False
        self.watcher: StreamWatcher | None = None

    @property
    def finished(self) -> bool:
        """Whether every completion has had its last event or was ended here."""
        return not self._unfinished

    def put(self, item: EventT | EngineError) -> None:
        """Hand over an event, or the error that ends the stream."""
        if isinstance(item, EngineError):
            self._unfinished.clear()
        elif item.index not in self._unfinished:
            return  # it was sent before the completion was ended
        elif item.finish_reason is not None:
            self._unfinished.remove(item.index)
        self._events.append(item)
        self._arrived.set()
        if self.watcher is not None and not isinstance(item, EngineError):
            self.watcher.note(item)

    async def __aiter__(self) -> AsyncIterator[EventT]:
        while True:
            while self._events:
                item = self._events.popleft()
                if isinstance(item, EngineError):
                    raise item
                yield item
            if self.finished or self._closed:
                return
            self._arrived.clear()
            await self._arrived.wait()

    def end(self, index: int) -> None:
        """Abort one unfinished completion in the engine, because nobody reads it any more."""
        if index in self._unfinished:
            self._unfinished.remove(index)
            self._arrived.set()
            self._table.end(self, index)

    async def aclose(self) -> None:
        """Abort the unfinished completions in the engine. Idempotent."""
        if not self._closed:
            self._closed = True
            self._arrived.set()
            self._table.close(self)


class StreamTable:
    """The open streams of one model, by request id. Event loop only."""

    def __init__(self, abort: Abort) -> None:
        self._streams: dict[str, RequestStream[Any]] = {}
        self._abort = abort
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._streams)

    def open(self, request: Request[EventT]) -> RequestStream[EventT]:
        """A stream for a request that is about to be sent."""
        stream = RequestStream(request, self)
        self._streams[request.request_id] = stream
        self._empty.clear()
        return stream

    async def wait_until_empty(self) -> None:
        """Return once no stream is open."""
        await self._empty.wait()

    def deliver(self, events: Iterable[Event]) -> None:
        """Hand each event to its stream; events of aborted requests are dropped."""
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            stream.put(event)
            if stream.finished:
                self._drop(stream)

    def fail(self, request_id: str, error: EngineError) -> None:
        """End one stream with `error`, if it is open."""
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put(error)
            self._drop(stream)

    def fail_all(self, error: EngineError, but: Container[str] = ()) -> None:
        """End every open stream with `error`, except those of some requests."""
        for stream in list(self._streams.values()):
            if stream.request_id not in but:
                stream.put(error)
                self._drop(stream)

    def end_adapter(self, adapter: str, error: EngineError) -> None:
        """End the open streams that use an adapter with `error`, in the engine as well."""
        for stream in list(self._streams.values()):
            if adapter in stream.adapter_names:
                self.fail(stream.request_id, error)
                self._abort(stream.request_id, None)

    def end(self, stream: RequestStream[Any], index: int) -> None:
        """Abort one completion of an open stream, possibly its last."""
        self._abort(stream.request_id, index)
        if stream.finished:
            self._drop(stream)

    def close(self, stream: RequestStream[Any]) -> None:
        """Abort a stream's request, if it is open."""
        if self._drop(stream):
            self._abort(stream.request_id, None)

    def _drop(self, stream: RequestStream[Any]) -> bool:
        """Forget the stream; False if it was not open any more."""
        was_open = self._streams.pop(stream.request_id, None) is not None
        if was_open and stream.watcher is not None:
            stream.watcher.end()
        if not self._streams:
            self._empty.set()
        return was_open
