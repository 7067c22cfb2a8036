"""An `EngineClient` without an engine: scripted answers to all operations, delays, failures, death.

The answers are pure functions of the requests (`fake_texts`, `fake_embeddings`, `fake_images`). It
behaves as the real client does: errors of `submit` are raised at once, later ones arrive as events,
a dead worker raises from the iterator.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.draw import ImageRequest
from engine.contract.enlarge import UpscaleRequest
from engine.contract.generate import GenerateRequest
from engine.contract.kinds import kind_of
from engine.contract.matte import MattingRequest
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import operation_of
from engine.contract.pixels import Pixels
from engine.contract.request import Event, Info, Request, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.errors import (
    Draining,
    EngineDead,
    EngineError,
    ModelConflict,
    ModelNotReady,
    ModelUnloading,
    UnknownAdapter,
    UnknownModel,
)
from engine.worker.client import EngineClient
from engine.worker.request_stream import RequestStream
from engine.worker.step_listeners import StepListeners
from tests.helpers.server import fake_embeddings, fake_images, fake_texts
from tests.helpers.server.fake_failure import Failure
from tests.helpers.server.fake_texts import Reply, model_info

_ANSWERS: dict[type[Request[Any]], Callable[..., AsyncIterator[Event]]] = {
    GenerateRequest: fake_texts.write,
    ImageRequest: fake_images.draw,
    MattingRequest: fake_images.matte,
    UpscaleRequest: fake_images.enlarge,
}
"""Makes the events of a request, given the engine and the failure; other requests are embedded."""


@dataclass(eq=False)
class Live:
    """One submitted request that has not ended."""

    request: Request[Any]
    stream: RequestStream[Any]
    task: "asyncio.Task[None] | None" = None


class FakeEngine(EngineClient):
    """Implements `engine.worker.client.EngineClient`. Every attribute may be changed while it runs.

    Attributes:
        reply: writes the tokens; shorter than `max_tokens` ends in end-of-sequence (reason stop).
        delay_s: pause before every event of a text; `first_delay_s` before the first.
        tokens_per_event: how many tokens one event carries.
        num_cached_tokens: reported by every event of a text.
        draw: makes the picture of an image; `step_s` is the time of a step.
        warnings: warnings that come with every picture.
        failure: fails the requests submitted while it is set; `failing` has those of some models.
        submit_error: raised by `submit`.
        held: models whose requests hold the engine until `release`.
        requests, aborted: what was asked for, and request ids closed before their end.
        ended: request ids and indices of completions that nobody reads on.
        live: requests not yet ended, by id.
        stop_timeouts: the arguments of `stop`.
        config_of_server: the configuration of models without settings of their own.
        specs: what was loaded on demand, by name.
        adapter_orders: the adapters that were loaded on demand.
        resets: the models whose prefix caches were reset.
        profiles: the orders to start to profile a model, or to stop.
        kept_alive: the idle seconds that requests have set, by model.
        load_error: what becomes of loads and wakes.
        make_info: the info of a model that is loaded.
        may_change: loads and unloads wait for it.
    """

    def __init__(
        self,
        *models: str | Info,
        reply: Reply = fake_texts.pure_reply,
        delay_s: float = 0.0,
        ready: bool = True,
    ) -> None:
        infos = [model_info(m) if isinstance(m, str) else m for m in models or ("fake",)]
        self.served: dict[str, Any] = {info.model: info for info in infos}
        self.reply = reply
        self.delay_s = delay_s
        self.first_delay_s = 0.0
        self.tokens_per_event = 1
        self.num_cached_tokens = 0
        self.draw: Callable[[ImageRequest, int], Pixels] = fake_images.picture
        self.step_s = 0.0
        self.warnings: tuple[str, ...] = ()
        self.failure: Failure | None = None
        self.failing: dict[str, Failure] = {}
        self.held: set[str] = set()
        self.submit_error: Exception | None = None
        self.requests: list[Any] = []
        self.aborted: list[str] = []
        self.ended: list[tuple[str, int]] = []
        self.live: dict[str, Live] = {}
        self.steps = StepListeners()
        self.started = False
        self.stopped = False
        self.stop_timeouts: list[float] = []
        self.check_text: Any = None
        self.on_gone: Callable[[str, str | None], None] | None = None
        self.config_of_server = EngineConfig()
        self.specs: dict[str, ModelSpec] = {}
        self.adapter_orders: list[AdapterOrder] = []
        self.resets: list[str] = []
        self.profiles: list[tuple[str, bool]] = []
        self.kept_alive: dict[str, float | None] = {}
        self.load_error: EngineError | None = None
        self.make_info: Callable[[ModelSpec], Info] = _info_of
        self.may_change = asyncio.Event()
        self.may_change.set()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self._stats: dict[str, Stats] = {}
        phase = Phase.READY if ready else Phase.STARTING
        self._statuses = {info.model: _status(info, phase) for info in infos}

    # The EngineClient protocol.

    def submit(self, request: Request[Any]) -> RequestStream[Any]:
        if self.submit_error is not None:
            raise self.submit_error
        if request.model not in self.served:
            raise UnknownModel(f"the model {request.model!r} is not served here", param="model")
        status = self._statuses[request.model]
        if self.stopped:
            raise Draining("the server is shutting down; send the request elsewhere")
        if status.phase is Phase.DRAINING:
            raise ModelUnloading(f"{request.model} is being unloaded")
        if status.phase not in (Phase.READY, Phase.SLEEPING):
            raise ModelNotReady(f"{request.model} is {status.phase}; try again later")
        self.requests.append(request)
        if request.model in self.held:
            self.hold()
        table: Any = self
        live = Live(request, RequestStream(request, table))
        self.live[request.request_id] = live
        failure = self.failing.get(request.model, self.failure)
        live.task = asyncio.get_running_loop().create_task(self._answer(live, failure))
        return live.stream

    def models(self) -> list[Info]:
        phases = (Phase.READY, Phase.SLEEPING)
        ready = [name for name, status in self._statuses.items() if status.phase in phases]
        return [info for info in self.served.values() if info.model in ready]

    def statuses(self) -> list[ModelStatus]:
        return list(self._statuses.values())

    def stats(self, model: str) -> Stats | None:
        return self._stats.get(model)

    def config(self, model: str) -> EngineConfig | None:
        if model not in self._statuses:
            return None
        spec = self.specs.get(model)
        return self.config_of_server if spec is None else spec.config(self.config_of_server)

    def load(self, spec: ModelSpec) -> "asyncio.Task[Info]":
        status = self._statuses.get(spec.name)
        if status is not None and status.phase is not Phase.FAILED:
            raise ModelConflict(f"{spec.name} is {status.phase} already", param="model")
        self.specs[spec.name] = spec
        self._statuses[spec.name] = ModelStatus(
            model=spec.name, phase=Phase.LOADING, progress=0.5, joining=True
        )
        return asyncio.get_running_loop().create_task(self._load(spec))

    def unload(self, model: str, drain_timeout_s: float) -> "asyncio.Task[None]":
        if model not in self._statuses:
            raise UnknownModel(f"the model {model!r} is not served here", param="model")
        if self._statuses[model].phase is Phase.DRAINING:
            raise ModelConflict(f"{model} is already being unloaded", param="model")
        self.set_status(model, Phase.DRAINING)
        return asyncio.get_running_loop().create_task(self._unload(model, drain_timeout_s))

    async def wake(self, model: str) -> Info:
        """Wait for `may_change`; a model that slept then serves as `make_info` says."""
        if self._statuses[model].is_asleep:
            await self.may_change.wait()
            if self.load_error is not None:
                raise self.load_error
            self.serve(self.served.get(model) or self.make_info(ModelSpec.create(model)))
        return self.served[model]

    def sleep(self, model: str, *, deep: bool = False) -> "asyncio.Task[None]":
        async def fall_asleep() -> None:
            await self.may_change.wait()
            self.set_status(model, Phase.SLEEPING)

        if model not in self._statuses:
            raise UnknownModel(f"the model {model!r} is not served here", param="model")
        if self._statuses[model].pinned:
            raise ModelConflict(f"{model} is pinned", param="model")
        return asyncio.get_running_loop().create_task(fall_asleep())

    def pin(self, model: str, pinned: bool) -> None:
        if model not in self._statuses:
            raise UnknownModel(f"the model {model!r} is not served here", param="model")
        self._statuses[model] = replace(self._statuses[model], pinned=pinned)

    def keep_alive(self, model: str, seconds: float | None) -> None:
        self.kept_alive[model] = seconds

    def reset_prefix_cache(self, model: str) -> None:
        self.resets.append(model)

    def profile(self, model: str, *, on: bool) -> None:
        self.profiles.append((model, on))

    def load_adapter(self, model: str, order: AdapterOrder) -> "asyncio.Future[AdapterReport]":
        info = self.served[model]
        info.with_adapter(order.name)
        if order.name in info.names and not order.replaces:
            raise ModelConflict(f"{order.name} is already served", param="lora_name")
        self.adapter_orders.append(order)
        return asyncio.get_running_loop().create_task(self._load_adapter(model, order))

    def unload_adapter(
        self, model: str, name: str, drain_timeout_s: float
    ) -> "asyncio.Future[None]":
        info = self.served[model]
        if name == model or name not in info.names:
            raise UnknownAdapter(f"{model} has no adapter {name}", param="lora_name")
        self.served[model] = info.without_adapter(name)
        return asyncio.get_running_loop().create_task(self._unload_adapter(model, name))

    async def start(self) -> None:
        self.started = True

    async def stop(self, drain_timeout_s: float) -> None:
        self.stopped = True
        self.stop_timeouts.append(drain_timeout_s)
        tasks = self._tasks(lambda request: True)
        if tasks and drain_timeout_s > 0:
            await asyncio.wait(tasks, timeout=drain_timeout_s)
        self._end_all("the engine was stopped with the request in it")
        for name in self._statuses:
            self.set_status(name, Phase.STOPPED)

    async def _load(self, spec: ModelSpec) -> Info:
        await self.may_change.wait()
        if self.load_error is not None:
            self.forget(spec.name)
            raise self.load_error
        info = self.make_info(spec)
        self.serve(info)
        return info

    async def _unload(self, model: str, drain_timeout_s: float) -> None:
        if tasks := self._tasks(lambda request: request.model == model):
            await asyncio.wait(tasks, timeout=drain_timeout_s)
        await self.may_change.wait()
        self._end_all("the model was unloaded", model)
        self.forget(model)

    async def _load_adapter(self, model: str, order: AdapterOrder) -> AdapterReport:
        await self.may_change.wait()
        if self.load_error is not None:
            raise self.load_error
        self.served[model] = self.served[model].with_adapter(order.name)
        return AdapterReport(num_layers=14, ranks=(4, 8), num_left_out=1, left_out=("vision.fc",))

    async def _unload_adapter(self, model: str, name: str) -> None:
        if tasks := self._tasks(lambda request: name in request.adapter_names):
            await asyncio.wait(tasks)
        await self.may_change.wait()

    def _tasks(self, is_meant: Callable[[Request[Any]], bool]) -> "list[asyncio.Task[None]]":
        return [live.task for live in self.live.values() if live.task and is_meant(live.request)]

    def forget(self, model: str) -> None:
        info = self.served.pop(model, None)
        del self._statuses[model]
        self.specs.pop(model, None)
        self._stats.pop(model, None)
        if self.on_gone is not None:
            self.on_gone(model, None if info is None else info.path)

    # What a test does to it.

    def serve(self, info: Info) -> None:
        """Serve one more model, which is ready."""
        self.served[info.model] = info
        self._statuses[info.model] = _status(info, Phase.READY)

    def set_status(self, model: str, phase: Phase, **changes: object) -> None:
        """Move one model to a phase; `changes` are further fields of `ModelStatus`."""
        before = self._statuses[model]
        fresh = ModelStatus(model=model, phase=phase, restarts=before.restarts, kind=before.kind)
        self._statuses[model] = replace(fresh, **changes)  # type: ignore[arg-type]

    def hold(self) -> None:
        """Write no more events until `release`."""
        self.may_write.clear()

    def release(self) -> None:
        self.held.clear()
        self.may_write.set()

    def kill_worker(self, model: str | None = None) -> None:
        """End the worker process: live streams raise EngineDead."""
        self._end_all("the engine process ended unexpectedly", model)

    def die(self, model: str | None = None) -> None:
        """End the worker process; the model restarts."""
        self.kill_worker(model)
        for name, status in list(self._statuses.items()):
            if model in (None, name):
                self.set_status(name, Phase.RESTARTING, restarts=status.restarts + 1)

    def revive(self) -> None:
        for name in self._statuses:
            self.set_status(name, Phase.READY)

    def publish(self, model: str, stats: Stats) -> None:
        """Report a step."""
        self._stats[model] = stats
        self.steps.tell(model, stats)

    def requests_for(self, operation: str) -> list[Any]:
        return [request for request in self.requests if operation_of(request).name == operation]

    # How it answers.

    async def _answer(self, live: Live, failure: Failure | None) -> None:
        request = live.request
        answer = _ANSWERS.get(type(request), fake_embeddings.embed)
        async for event in answer(self, request, failure):
            live.stream.put(event)
        self.live.pop(request.request_id, None)

    def end(self, stream: RequestStream[Any], index: int) -> None:
        """Take note that nobody reads a completion any more, as a stream's table does."""
        self.ended.append((stream.request_id, index))

    def close(self, stream: RequestStream[Any]) -> None:
        """Abort a stream's request if it has not ended, as a stream's table does."""
        live = self.live.pop(stream.request_id, None)
        if live is not None:
            self._abandon(live)
            self.aborted.append(stream.request_id)

    def _end_all(self, message: str, model: str | None = None) -> None:
        for request_id, live in list(self.live.items()):
            if model in (None, live.request.model):
                self._abandon(live)
                live.stream.put(EngineDead(message))
                del self.live[request_id]

    def _abandon(self, live: Live) -> None:
        if live.task is not None:
            live.task.cancel()
            live.task = None  # whose end would hold this


def _status(info: Info, phase: Phase) -> ModelStatus:
    return ModelStatus(model=info.model, phase=phase, kind=kind_of(info).name)


def _info_of(spec: ModelSpec) -> Info:
    """Make the info of a model that is loaded, by the names of known models."""
    if spec.ref == "u2netp":
        return fake_images.matting_info(spec.name)
    if spec.name.startswith("realesr"):
        return fake_images.upscaler_info(spec.name)
    return model_info(spec.name)
