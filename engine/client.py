"""The server's only door to the engine: submit requests, read events, ask for states.

`ProcessEngineClient` runs a supervised worker process per model. `InProcessEngineClient` steps an
engine in a thread of this process, which is what tests need.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol, TypeVar

from engine.errors import Draining, EngineDead, EngineError, UnknownModel
from engine.fault import answer_for
from engine.image_share import ImageShare
from engine.image_types import ImageEvent
from engine.kinds import Kind, kind_of
from engine.model_spec import ModelSpec
from engine.rejection import rejection
from engine.request_stream import RequestStream, StreamTable
from engine.runtime.memory import MemoryArbiter
from engine.step_listeners import StepListeners
from engine.stepping import AnyEngine
from engine.supervisor import Supervisor, WorkerOptions
from engine.text_gate import TextCheck
from engine.types import (
    Event,
    EventT,
    Info,
    InfoT,
    ModelStatus,
    Phase,
    Request,
    Stats,
    TokenEvent,
)

__all__ = [
    "EngineClient",
    "ImageStream",
    "InProcessEngineClient",
    "ProcessEngineClient",
    "RequestEvents",
    "TokenStream",
    "WorkerOptions",
]

AnyEventT = TypeVar("AnyEventT", bound=Event, covariant=True)


class RequestEvents(Protocol[AnyEventT]):
    """Async iterator over a request's events; ends after the last one of each completion or
    image."""

    def __aiter__(self) -> AsyncIterator[AnyEventT]: ...

    async def aclose(self) -> None:
        """Abort in the engine if not finished. Idempotent."""
        ...


TokenStream = RequestEvents[TokenEvent]
ImageStream = RequestEvents[ImageEvent]


class EngineClient(Protocol):
    """What the server needs of an engine."""

    steps: StepListeners
    """Told of every step that an engine reports."""
    check_text: TextCheck | None
    """Awaited with the place of each checkpoint that has a text side before its model is ready;
    what it raises is why the model failed. To be set before the start."""

    def submit(self, request: Request[EventT]) -> RequestEvents[EventT]:
        """Queue a request.

        The iterator raises `EngineDead` when the worker dies under it; other late failures come as
        events with finish reason `error`.

        Raises:
            UnknownModel: no model of that id is configured.
            InvalidParameter: the model is of another kind.
            ModelNotReady: it is loading, restarting or failed.
            Draining: the client is being stopped.
        """
        ...

    def infos(self, kind: Kind[Any, Any, InfoT]) -> list[InfoT]:
        """The models of that kind that are ready."""
        ...

    def statuses(self) -> list[ModelStatus]:
        """All configured models."""
        ...

    def stats(self, model: str) -> Stats | None:
        """The newest report of that model's engine, of its kind's type."""
        ...

    async def start(self) -> None:
        """Return at once; models load in the background."""
        ...

    async def stop(self, drain_timeout_s: float) -> None:
        """Refuse new requests, let the running ones finish for so long, then end the workers."""
        ...


class ProcessEngineClient:
    """One supervised worker process per model, routed by model id."""

    def __init__(self, specs: Sequence[ModelSpec], options: WorkerOptions) -> None:
        self.steps = StepListeners()
        self.check_text: TextCheck | None = None
        self._draining = False
        arbiter = MemoryArbiter()
        self._supervisors = {
            spec.name: Supervisor(spec, options, arbiter, self._report, self._check_text)
            for spec in specs
        }
        self._image_share = ImageShare(options.config.image_share, self._throttle)

    def submit(self, request: Request[EventT]) -> RequestStream[EventT]:
        if self._draining:
            raise Draining("the server is shutting down; send the request to another one")
        supervisor = self._supervisors.get(request.model)
        if supervisor is None:
            names = ", ".join(info.model for info in self._ready()) or "those that GET /ready names"
            raise UnknownModel(
                f"model {request.model!r} is not served; use one of {names}", param="model"
            )
        stream = supervisor.submit(request)
        if not kind_of(request).yields:
            self._image_share.note(request.model, busy=True)
        return stream

    def infos(self, kind: Kind[Any, Any, InfoT]) -> list[InfoT]:
        return [info for info in self._ready() if isinstance(info, kind.info)]

    def statuses(self) -> list[ModelStatus]:
        return [s.status for s in self._supervisors.values()]

    def stats(self, model: str) -> Stats | None:
        return self._supervisors[model].stats if model in self._supervisors else None

    async def start(self) -> None:
        for supervisor in self._supervisors.values():
            supervisor.start()

    async def stop(self, drain_timeout_s: float) -> None:
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                for supervisor in self._supervisors.values():
                    await supervisor.wait_until_idle()
        await asyncio.gather(*(s.stop() for s in self._supervisors.values()))

    def _ready(self) -> list[Info]:
        return [
            s.info
            for s in self._supervisors.values()
            if s.info is not None and s.status.phase is Phase.READY
        ]

    async def _check_text(self, path: str) -> int:
        return 0 if self.check_text is None else await self.check_text(path)

    def _report(self, model: str, stats: Stats) -> None:
        if not kind_of(stats).yields:
            self._image_share.note(model, busy=stats.num_running + stats.num_waiting > 0)
        self.steps.tell(model, stats)

    def _throttle(self, share: float | None) -> None:
        for supervisor in self._supervisors.values():
            if supervisor.kind is None or supervisor.kind.yields:
                supervisor.throttle(share)


class InProcessEngineClient:
    """Steps one engine in a thread of this process."""

    def __init__(self, engine: AnyEngine, info: Info) -> None:
        self.steps = StepListeners()
        self.check_text: TextCheck | None = None
        self._engine = engine
        self._info = info
        self._stats: Stats | None = None
        self._inbox: queue.SimpleQueue[Request[Any] | str | None] = queue.SimpleQueue()
        self._streams = StreamTable(self._inbox.put)
        self._phase = Phase.STARTING
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, request: Request[EventT]) -> RequestStream[EventT]:
        if request.model != self._info.model:
            raise UnknownModel(
                f"model {request.model!r} is not served; use {self._info.model}", param="model"
            )
        if self._phase is not Phase.READY:
            raise Draining("the server is shutting down; send the request to another one")
        stream = self._streams.open(request)
        self._inbox.put(request)
        return stream

    def infos(self, kind: Kind[Any, Any, InfoT]) -> list[InfoT]:
        return [self._info] if isinstance(self._info, kind.info) else []

    def statuses(self) -> list[ModelStatus]:
        return [ModelStatus(model=self._info.model, phase=self._phase)]

    def stats(self, model: str) -> Stats | None:
        return self._stats

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._phase = Phase.READY
        self._thread.start()

    async def stop(self, drain_timeout_s: float) -> None:
        self._phase = Phase.DRAINING
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                await self._streams.wait_until_empty()
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)
        self._phase = Phase.STOPPED

    def _run(self) -> None:
        """The engine thread: drain the inbox, step, hand events to the event loop."""
        assert self._loop is not None
        try:
            while self._drain_inbox():
                if self._engine.has_work():
                    self._loop.call_soon_threadsafe(self._deliver, *self._engine.step())
        except Exception as error:
            self._loop.call_soon_threadsafe(self._die, EngineDead(str(error)))
        finally:
            self._engine.shutdown()

    def _drain_inbox(self) -> bool:
        """Take in what arrived; wait for something when idle. False: time to stop."""
        while True:
            try:
                item = self._inbox.get(block=not self._engine.has_work())
            except queue.Empty:
                return True
            if item is None:
                return False
            if isinstance(item, str):
                self._engine.abort(item)
            else:
                self._add(item)

    def _add(self, request: Request[Any]) -> None:
        assert self._loop is not None
        try:
            self._engine.add(request)
        except Exception as error:
            events = rejection(request, answer_for(error, request.request_id))
            self._loop.call_soon_threadsafe(self._deliver, events, self._engine.stats())

    def _deliver(self, events: Sequence[Event], stats: Stats) -> None:
        self._stats = stats
        self._streams.deliver(events)
        self.steps.tell(self._info.model, stats)

    def _die(self, error: EngineError) -> None:
        self._phase = Phase.FAILED
        self._streams.fail_all(error)
