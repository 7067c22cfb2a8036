"""An engine client for tests: it steps one engine in a thread of this process."""

import asyncio
import contextlib
import queue
import threading
from collections.abc import Sequence
from typing import Any

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.model_spec import ModelSpec
from engine.contract.rejection import rejection
from engine.contract.request import Event, EventT, Info, Request, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.errors import Draining, EngineDead, EngineError, UnknownModel, UnsupportedFeature
from engine.runtime.fault import answer_for
from engine.worker.client import EngineClient, OnGone
from engine.worker.request_stream import RequestStream, StreamTable
from engine.worker.step_listeners import StepListeners
from engine.worker.stepping import AnyEngine
from engine.worker.text_gate import TextCheck

_Item = Request[Any] | tuple[str, int | None] | None
"""A request, the arguments of an abort, or the end."""


class InProcessEngineClient(EngineClient):
    """Steps one engine in a thread of this process."""

    def __init__(self, engine: AnyEngine, info: Info, config: EngineConfig | None = None) -> None:
        self.steps = StepListeners()
        self.check_text: TextCheck | None = None
        self.on_gone: OnGone | None = None
        self._engine = engine
        self._info = info
        self._config = config or EngineConfig()
        self._stats: Stats | None = None
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._streams = StreamTable(lambda *ended: self._inbox.put(ended))
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

    def load(self, spec: ModelSpec) -> asyncio.Task[Info]:
        raise UnsupportedFeature("this engine has the one model that it was made with")

    def unload(self, model: str, drain_timeout_s: float) -> asyncio.Task[None]:
        raise UnsupportedFeature("this engine has the one model that it was made with")

    def reset_prefix_cache(self, model: str) -> None:
        raise UnsupportedFeature("this engine is stepped in another thread")

    def profile(self, model: str, *, on: bool) -> None:
        raise UnsupportedFeature("this engine is stepped in another thread")

    def load_adapter(self, model: str, order: AdapterOrder) -> asyncio.Future[AdapterReport]:
        raise UnsupportedFeature("this engine has the adapters that it was made with")

    def unload_adapter(self, model: str, name: str, drain_timeout_s: float) -> asyncio.Future[None]:
        raise UnsupportedFeature("this engine has the adapters that it was made with")

    def config(self, model: str) -> EngineConfig | None:
        return self._config if model == self._info.model else None

    def models(self) -> list[Info]:
        return [self._info]

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
            if isinstance(item, tuple):
                self._engine.abort(*item)
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
