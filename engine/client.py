"""The server's only door to the engine: submit requests, read events, ask for states.

`ProcessEngineClient` runs a supervised worker process per model. `InProcessEngineClient` steps an
engine in a thread of this process, which is what tests need.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Protocol, TypeVar, overload

from engine.errors import Draining, EngineDead, EngineError, UnknownModel
from engine.fault import answer_for
from engine.image_share import ImageShare
from engine.image_types import ImageEvent, ImageModelInfo, ImageRequest, ImageStats
from engine.model_spec import ModelSpec
from engine.rejection import rejection
from engine.request_stream import RequestStream, StreamTable
from engine.runtime.memory import MemoryArbiter
from engine.stepping import AnyEngine
from engine.supervisor import Supervisor, WorkerOptions
from engine.text_gate import TextCheck
from engine.types import (
    EngineStats,
    GenerateRequest,
    ModelInfo,
    ModelStatus,
    Phase,
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

StatsListener = Callable[[str, EngineStats], None]
ImageStatsListener = Callable[[str, ImageStats], None]
Event = TypeVar("Event", bound=TokenEvent | ImageEvent, covariant=True)


class RequestEvents(Protocol[Event]):
    """Async iterator over a request's events; ends after the last one of each completion or
    image."""

    def __aiter__(self) -> AsyncIterator[Event]: ...

    async def aclose(self) -> None:
        """Abort in the engine if not finished. Idempotent."""
        ...


TokenStream = RequestEvents[TokenEvent]
ImageStream = RequestEvents[ImageEvent]


class EngineClient(Protocol):
    """What the server needs of an engine."""

    on_stats: list[StatsListener]
    """Called with (model, stats) for every step that a text model reports."""
    on_image_stats: list[ImageStatsListener]
    """The same for image models."""
    check_text: TextCheck | None
    """Awaited with the place of each text model's checkpoint before the model is ready; what it
    raises is why the model failed. To be set before the start."""

    @overload
    def submit(self, request: GenerateRequest) -> TokenStream: ...
    @overload
    def submit(self, request: ImageRequest) -> ImageStream: ...
    def submit(self, request: Any) -> Any:
        """Queue a request.

        The iterator raises `EngineDead` when the worker dies under it; other late failures come as
        events with finish reason `error`.

        Raises:
            UnknownModel: no model of that id is configured.
            InvalidParameter: the model makes the other kind of thing.
            ModelNotReady: it is loading, restarting or failed.
            Draining: the client is being stopped.
        """
        ...

    def models(self) -> list[ModelInfo]:
        """The text models that are ready."""
        ...

    def image_models(self) -> list[ImageModelInfo]:
        """The image models that are ready."""
        ...

    def statuses(self) -> list[ModelStatus]:
        """All configured models."""
        ...

    def stats(self, model: str) -> EngineStats | None:
        """The newest report of that text model's engine."""
        ...

    def image_stats(self, model: str) -> ImageStats | None:
        """The newest report of that image model's engine."""
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
        self.on_stats: list[StatsListener] = []
        self.on_image_stats: list[ImageStatsListener] = []
        self.check_text: TextCheck | None = None
        self._draining = False
        arbiter = MemoryArbiter()
        self._supervisors = {
            spec.name: Supervisor(spec, options, arbiter, self._report, self._check_text)
            for spec in specs
        }
        self._image_share = ImageShare(options.config.image_share, self._throttle)

    def submit(self, request: GenerateRequest | ImageRequest) -> RequestStream[Any]:
        if self._draining:
            raise Draining("the server is shutting down; send the request to another one")
        supervisor = self._supervisors.get(request.model)
        if supervisor is None:
            names = ", ".join(info.model for info in self._ready()) or "those that GET /ready names"
            raise UnknownModel(
                f"model {request.model!r} is not served; use one of {names}", param="model"
            )
        stream = supervisor.submit(request)
        if isinstance(request, GenerateRequest):
            self._image_share.on_text(request.model, busy=True)
        return stream

    def models(self) -> list[ModelInfo]:
        return [info for info in self._ready() if isinstance(info, ModelInfo)]

    def image_models(self) -> list[ImageModelInfo]:
        return [info for info in self._ready() if isinstance(info, ImageModelInfo)]

    def statuses(self) -> list[ModelStatus]:
        return [s.status for s in self._supervisors.values()]

    def stats(self, model: str) -> EngineStats | None:
        stats = self._supervisors[model].stats if model in self._supervisors else None
        return stats if isinstance(stats, EngineStats) else None

    def image_stats(self, model: str) -> ImageStats | None:
        stats = self._supervisors[model].stats if model in self._supervisors else None
        return stats if isinstance(stats, ImageStats) else None

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

    def _ready(self) -> list[ModelInfo | ImageModelInfo]:
        return [
            s.info
            for s in self._supervisors.values()
            if s.info is not None and s.status.phase is Phase.READY
        ]

    async def _check_text(self, path: str) -> int:
        return 0 if self.check_text is None else await self.check_text(path)

    def _report(self, model: str, stats: EngineStats | ImageStats) -> None:
        if isinstance(stats, ImageStats):
            for image_listener in self.on_image_stats:
                image_listener(model, stats)
            return
        self._image_share.on_text(model, busy=stats.num_running + stats.num_waiting > 0)
        for listener in self.on_stats:
            listener(model, stats)

    def _throttle(self, share: float | None) -> None:
        for supervisor in self._supervisors.values():
            if not isinstance(supervisor.info, ModelInfo):
                supervisor.throttle(share)


class InProcessEngineClient:
    """Steps one engine in a thread of this process."""

    def __init__(self, engine: AnyEngine, info: ModelInfo | ImageModelInfo) -> None:
        self.on_stats: list[StatsListener] = []
        self.on_image_stats: list[ImageStatsListener] = []
        self.check_text: TextCheck | None = None
        self._engine = engine
        self._info = info
        self._stats: EngineStats | ImageStats | None = None
        self._inbox: queue.SimpleQueue[GenerateRequest | ImageRequest | str | None] = (
            queue.SimpleQueue()
        )
        self._streams = StreamTable(self._inbox.put)
        self._phase = Phase.STARTING
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def submit(self, request: GenerateRequest | ImageRequest) -> RequestStream[Any]:
        if request.model != self._info.model:
            raise UnknownModel(
                f"model {request.model!r} is not served; use {self._info.model}", param="model"
            )
        if self._phase is not Phase.READY:
            raise Draining("the server is shutting down; send the request to another one")
        stream = self._streams.open(request)
        self._inbox.put(request)
        return stream

    def models(self) -> list[ModelInfo]:
        return [self._info] if isinstance(self._info, ModelInfo) else []

    def image_models(self) -> list[ImageModelInfo]:
        return [self._info] if isinstance(self._info, ImageModelInfo) else []

    def statuses(self) -> list[ModelStatus]:
        return [ModelStatus(model=self._info.model, phase=self._phase)]

    def stats(self, model: str) -> EngineStats | None:
        return self._stats if isinstance(self._stats, EngineStats) else None

    def image_stats(self, model: str) -> ImageStats | None:
        return self._stats if isinstance(self._stats, ImageStats) else None

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

    def _add(self, request: GenerateRequest | ImageRequest) -> None:
        assert self._loop is not None
        try:
            self._engine.add(request)  # type: ignore[arg-type]  # the caller knows the model's kind
        except Exception as error:
            events = rejection(request, answer_for(error, request.request_id))
            self._loop.call_soon_threadsafe(self._deliver, events, self._engine.stats())

    def _deliver(
        self, events: list[TokenEvent] | list[ImageEvent], stats: EngineStats | ImageStats
    ) -> None:
        self._stats = stats
        self._streams.deliver(events)
        if isinstance(stats, ImageStats):
            for image_listener in self.on_image_stats:
                image_listener(self._info.model, stats)
            return
        for listener in self.on_stats:
            listener(self._info.model, stats)

    def _die(self, error: EngineError) -> None:
        self._phase = Phase.FAILED
        self._streams.fail_all(error)
