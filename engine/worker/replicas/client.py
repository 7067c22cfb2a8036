"""The client that the server uses: each of its models has one worker, or several that share its id.

It is a table of `ReplicaSet`s over `ProcessEngineClient`, whose table has the workers. A model with
one worker costs a look-up. What is asked of a model is asked of all its workers; a request goes to
the one that its router chooses.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import structlog

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.model_spec import ModelSpec
from engine.contract.request import EventT, Info, Request, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus
from engine.errors import (
    Draining,
    EngineError,
    Failure,
    InsufficientMemory,
    ModelConflict,
    ModelLoadError,
    ModelNotReady,
    UnknownModel,
)
from engine.runtime.memory import DeviceMemory
from engine.worker.changes import Changes
from engine.worker.client import EngineClient, OnGone, ProcessEngineClient, ReplicaState
from engine.worker.replicas.replica_set import ReplicaSet
from engine.worker.replicas.sums import sum_of
from engine.worker.request_stream import RequestStream
from engine.worker.step_listeners import StepListeners
from engine.worker.text_gate import TextCheck
from engine.worker.worker_options import WorkerOptions

_WAKE_BESIDE_S = 5.0
"""How long a sleeping replica is wanted because the others are busy: less than the time after which
requests of other models would have to wait for it (`slumber.RELOAD_PAUSE_S`)."""

log = structlog.get_logger(__name__)


class ReplicatedEngineClient(EngineClient):
    """A client whose models have one worker or several."""

    def __init__(self, specs: Sequence[ModelSpec], options: WorkerOptions) -> None:
        self.steps = StepListeners()
        self.on_gone: OnGone | None = None
        self._options = options
        self._sets = {spec.name: ReplicaSet(spec, options.config) for spec in specs}
        self._set_of: dict[str, ReplicaSet] = {}
        """The set of each worker."""
        firsts = [one.first() for one in self._sets.values()]
        self._workers = ProcessEngineClient(firsts, options)
        self._workers.steps = _StepsOfWorkers(self.steps, self._model_of)
        self._workers.on_gone = self._note_gone
        self._workers.on_lost = self._note_lost
        for one, first in zip(self._sets.values(), firsts, strict=True):
            self._check_names(one, None)
            self._enter(one, first.name)
        self._wakes: dict[str, asyncio.Task[None]] = {}
        """The replicas that are woken beside busy ones."""
        self._changes = Changes()
        self._has_started = self._is_draining = False

    @property
    def check_text(self) -> TextCheck | None:
        return self._workers.check_text

    @check_text.setter
    def check_text(self, check: TextCheck | None) -> None:
        self._workers.check_text = check

    def submit(self, request: Request[EventT]) -> RequestStream[EventT]:
        own = self._set(request.model)
        if own.config.replicas == 1:
            return self._workers.submit(request)
        return self._route(own, request)

    def _route(self, own: ReplicaSet, request: Request[EventT]) -> RequestStream[EventT]:
        """Submit a request to one of several workers."""
        ready = [name for name in own.workers if self._workers.is_ready(name)]
        asleep = [name for name in own.workers if self._workers.waits(name)]
        info = self._workers.info(own.workers[0])
        among = ready or asleep
        if info is None or not among:  # the first one's error says why
            return self._workers.submit(replace(request, model=own.workers[0]))
        waking = [name for name in asleep if name in self._wakes]
        if ready and len(asleep) > len(waking) and own.lacks(ready, len(waking)):
            self._wake_beside(next(name for name in asleep if name not in waking))
        routed = own.route(request, info, among)
        stream = self._workers.submit(replace(request, model=routed.worker))
        routed.begin()
        stream.watcher = routed
        return stream

    def _wake_beside(self, worker: str) -> None:
        """Wake a replica because the others are busy, if there is memory for it soon."""

        async def wake() -> None:
            try:
                with contextlib.suppress(TimeoutError, EngineError):
                    await asyncio.wait_for(self._workers.wake(worker), _WAKE_BESIDE_S)
            finally:
                del self._wakes[worker]

        self._wakes[worker] = self._changes.begin(wake())

    def load(self, spec: ModelSpec) -> asyncio.Task[Info]:
        new = ReplicaSet(spec, self._options.config, on_demand=True)
        before = self._sets.get(spec.name)
        self._check_names(new, before)
        if before is not None and before.is_leaving:
            raise ModelConflict(
                f"model {spec.name!r} is being unloaded; load it again once that is done",
                param="model",
            )
        if before is not None and len(before.workers) > 1:
            raise ModelConflict(
                f"model {spec.name!r} is already loaded, in {len(before.workers)} replicas; "
                f"unload it first or use another name",
                param="model",
            )
        if before is not None and not before.workers:
            self._forget(before)
        first = new.first()
        load = self._workers.load(first)
        self._sets[spec.name] = new
        self._enter(new, first.name)
        return self._changes.begin(self._finish_load(new, load))

    def unload(self, model: str, drain_timeout_s: float) -> asyncio.Task[None]:
        own = self._set(model, may_have_failed=True)
        if own.is_leaving:
            raise ModelConflict(f"model {model!r} is already being unloaded", param="model")
        unloads = [self._workers.unload(name, drain_timeout_s) for name in list(own.workers)]
        own.is_leaving = True
        if not unloads:
            self._forget(own)
        return self._changes.begin(_all(unloads))

    async def wake(self, model: str) -> Info:
        own = self._set(model)
        waking = (self._workers.wake(name) for name in own.workers)
        outcomes = await asyncio.gather(*waking, return_exceptions=True)
        infos = [one for one in outcomes if isinstance(one, Info)]
        if not infos:
            raise next(one for one in outcomes if isinstance(one, BaseException))
        if not (own.is_complete or own.is_leaving):
            self._changes.begin(self._complete(own))
        return own.info(infos[0])

    def sleep(self, model: str, *, deep: bool = False) -> asyncio.Task[None]:
        own = self._set(model)
        return self._changes.begin(
            _all([self._workers.sleep(name, deep=deep) for name in own.workers])
        )

    def pin(self, model: str, pinned: bool) -> None:
        for name in self._set(model).workers:
            self._workers.pin(name, pinned)

    def keep_alive(self, model: str, seconds: float | None) -> None:
        for name in self._workers_of(model):
            self._workers.keep_alive(name, seconds)

    def reset_prefix_cache(self, model: str) -> None:
        for name in self._workers_of(model):
            self._workers.reset_prefix_cache(name)
            self._note_lost(name)

    def profile(self, model: str, *, on: bool) -> None:
        for name in self._workers_of(model):
            self._workers.profile(name, on=on)

    def load_adapter(self, model: str, order: AdapterOrder) -> asyncio.Future[AdapterReport]:
        own = self._set(model)
        if len(own.workers) == 1:
            return self._workers.load_adapter(own.workers[0], order)
        self._check_all_ready(own)
        loads = {name: self._workers.load_adapter(name, order) for name in own.workers}
        return self._changes.begin(self._finish_adapter(loads, order))

    async def _finish_adapter(
        self, loads: dict[str, asyncio.Future[AdapterReport]], order: AdapterOrder
    ) -> AdapterReport:
        """Wait for all workers. If one fails, take a new adapter out of the others again."""
        outcomes = await asyncio.gather(*loads.values(), return_exceptions=True)
        errors = [one for one in outcomes if isinstance(one, BaseException)]
        if not errors:
            return next(one for one in outcomes if isinstance(one, AdapterReport))
        for name, outcome in zip(loads, outcomes, strict=True):
            if isinstance(outcome, AdapterReport) and not order.replaces:
                with contextlib.suppress(EngineError):
                    await self._workers.unload_adapter(name, order.name, 0.0)
        raise errors[0]

    def unload_adapter(self, model: str, name: str, drain_timeout_s: float) -> asyncio.Future[None]:
        own = self._set(model)
        if len(own.workers) == 1:
            return self._workers.unload_adapter(own.workers[0], name, drain_timeout_s)
        self._check_all_ready(own)
        unloads = [self._workers.unload_adapter(one, name, drain_timeout_s) for one in own.workers]
        return self._changes.begin(_all(unloads))

    def config(self, model: str) -> EngineConfig | None:
        own = self._sets.get(model)
        if own is None:
            return None
        return own.config_as(self._workers.config(own.workers[0]) if own.workers else None)

    def models(self) -> list[Info]:
        infos = {info.model: info for info in self._workers.models()}
        found = [
            (own, next((infos[name] for name in own.workers if name in infos), None))
            for own in self._sets.values()
            if not own.is_leaving
        ]
        return [own.info(info) for own, info in found if info is not None]

    def statuses(self) -> list[ModelStatus]:
        statuses = {status.model: status for status in self._workers.statuses()}
        return [own.status([statuses[name] for name in own.workers]) for own in self._sets.values()]

    def stats(self, model: str) -> Stats | None:
        found = [self._workers.stats(name) for name in self._workers_of(model)]
        return sum_of([one for one in found if one is not None])

    def replicas(self, model: str) -> list[ReplicaState]:
        own = self._sets.get(model)
        if own is None or own.config.replicas == 1:
            return []
        ready = {name: self._workers.is_ready(name) for name in own.workers}
        return [
            ReplicaState(
                name=name,
                is_ready=ready.get(name, False),
                num_requests=own.num_running(name),
                stats=self._workers.stats(name),
            )
            for name in own.names
        ]

    def memory(self) -> list[DeviceMemory]:
        return [self._together(device) for device in self._workers.memory()]

    def _together(self, device: DeviceMemory) -> DeviceMemory:
        """A device whose memory belongs to models instead of their workers."""
        held: dict[str, int] = {}
        for worker, num_bytes in device.held_bytes.items():
            model = self._model_of(worker)
            held[model] = held.get(model, 0) + num_bytes
        return DeviceMemory(device.device, device.budget_bytes, held)

    async def start(self) -> None:
        if self._has_started:
            return
        self._has_started = True
        await self._workers.start()
        if any(not own.is_complete for own in self._sets.values()):
            self._changes.begin(self._complete_all())

    async def stop(self, drain_timeout_s: float) -> None:
        self._is_draining = True
        await self._workers.stop(drain_timeout_s)
        await self._changes.wait()

    async def _complete_all(self) -> None:
        """Start the other workers of the first models, once all of these have settled: the first
        worker of each comes before the second one of any."""
        sets = list(self._sets.values())
        await asyncio.gather(*(self._workers.settle(name) for own in sets for name in own.workers))
        for own in sets:
            if not (own.is_complete or own.is_leaving):
                with contextlib.suppress(EngineError):  # the model's status says it
                    await self._complete(own)

    async def _complete(self, own: ReplicaSet) -> None:
        """Start the workers after the first one, if that serves.

        Raises:
            EngineError: one of them cannot be loaded. The model is then not served at all.
        """
        first = own.workers[0] if own.workers else own.name
        info = self._workers.info(first)
        if info is None or own.is_complete or own.is_leaving:
            return
        loads = []
        for spec in own.others(info):
            loads.append(self._workers.load(spec))
            self._enter(own, spec.name)
        outcomes = await asyncio.gather(*loads, return_exceptions=True)
        errors = [one for one in outcomes if isinstance(one, BaseException)]
        own.is_whole = not errors
        if errors and not (own.is_leaving or self._is_draining):
            num_served = 1 + len(outcomes) - len(errors)
            own.failure = _too_many(own, num_served, errors[0])
            log.error("replicas cannot be loaded", model=own.name, cause=own.failure.message)
            await _all([self._workers.unload(name, 0.0) for name in list(own.workers)])
            raise own.failure.error()

    async def _finish_load(self, own: ReplicaSet, first: asyncio.Task[Info]) -> Info:
        info = await asyncio.shield(first)
        try:
            await self._complete(own)
        except EngineError:
            self._forget(own)
            raise
        if own.is_leaving:
            raise ModelConflict(
                f"model {own.name!r} was unloaded before it was loaded", param="model"
            )
        return own.info(info)

    def _check_names(self, new: ReplicaSet, before: ReplicaSet | None) -> None:
        """Check that no other model has the name of one of the workers.

        Raises:
            ModelConflict: one has.
        """
        for name in new.names:
            owner = self._sets.get(name) or self._set_of.get(name)
            if owner not in (None, before, new):
                raise ModelConflict(
                    f"{name!r}, a replica of {new.name!r}, would have the name of another model; "
                    f"use another name",
                    param="model",
                )

    def _check_all_ready(self, own: ReplicaSet) -> None:
        """Check that adapters can be changed, which happens in all workers at once.

        Raises:
            ModelNotReady: a worker is not ready; the message names it.
        """
        for name in own.names:
            if name not in own.workers or not self._workers.is_ready(name):
                raise ModelNotReady(
                    f"adapters are changed in all {own.config.replicas} replicas of model "
                    f"{own.name!r} at once, and {name} is not ready; try again later",
                    param="lora_name",
                )

    def _set(self, model: str, *, may_have_failed: bool = False) -> ReplicaSet:
        """A model's workers.

        Raises:
            UnknownModel: there is no model of that id.
            ModelNotReady: it cannot be served with that many workers.
            Draining: the client is being stopped.
        """
        if self._is_draining:
            raise Draining("the server is shutting down; send the request to another one")
        own = self._sets.get(model)
        if own is None:
            names = ", ".join(info.model for info in self.models())
            use = names or "the models that GET /ready lists"
            raise UnknownModel(f"model {model!r} is not served; use one of {use}", param="model")
        if own.failure is not None and not may_have_failed:
            raise ModelNotReady(f"model {model!r} is not ready: {own.failure.message}")
        return own

    def _workers_of(self, model: str) -> list[str]:
        own = self._sets.get(model)
        return [] if own is None else own.workers

    def _enter(self, own: ReplicaSet, worker: str) -> None:
        own.workers.append(worker)
        self._set_of[worker] = own

    def _model_of(self, worker: str) -> str:
        own = self._set_of.get(worker)
        return worker if own is None else own.name

    def _note_lost(self, worker: str) -> None:
        own = self._set_of.get(worker)
        if own is not None:
            own.lose(worker)

    def _note_gone(self, worker: str, path: str | None) -> None:
        """Note that a worker is out of the table. Its model is gone with the last one, unless it
        has failed, which is then still to be seen."""
        own = self._set_of.pop(worker, None)
        if own is None:
            return
        own.workers.remove(worker)
        own.text_path = path or own.text_path
        if not own.workers and own.failure is None:
            self._forget(own)

    def _forget(self, own: ReplicaSet) -> None:
        if self._sets.get(own.name) is own:
            del self._sets[own.name]
        if self.on_gone is not None:
            self.on_gone(own.name, own.text_path)


class _StepsOfWorkers(StepListeners):
    """Passes steps of workers on as those of their models."""

    def __init__(self, of_models: StepListeners, model_of: Callable[[str], str]) -> None:
        super().__init__()
        self._of_models = of_models
        self._model_of = model_of

    def tell(self, model: str, stats: Stats, worker: str = "") -> None:
        self._of_models.tell(self._model_of(model), stats, model)


async def _all(changes: Sequence[Awaitable[None]]) -> None:
    """Wait for all changes, then raise the first error."""
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    for one in outcomes:
        if isinstance(one, BaseException):
            raise one


def _too_many(own: ReplicaSet, num_served: int, error: BaseException) -> Failure:
    """The reason why a model is not served with as many replicas as it should have."""
    asked = own.config.replicas
    cause = error.message if isinstance(error, EngineError) else repr(error)
    code = error.code if isinstance(error, EngineError) else ModelLoadError.code
    is_short = isinstance(error, InsufficientMemory)
    fix = f"set replicas to {num_served}" + (", or kv_cache_memory_gib to less" * is_short)
    return Failure(code, f"{num_served} of {asked} replicas could be loaded: {cause}; {fix}")
