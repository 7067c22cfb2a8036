"""The server's only way to the engine: it submits requests, reads events and asks for states.

`ProcessEngineClient` runs a supervised worker process per model.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.draw import ImageEvent
from engine.contract.generate import TokenEvent
from engine.contract.kinds import kind_of
from engine.contract.knob import GIB
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import Operation
from engine.contract.request import Event, EventT, Info, InfoT, Request, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.errors import (
    Draining,
    ModelConflict,
    ModelUnloading,
    UnknownModel,
)
from engine.runtime.memory import DeviceMemory, MemoryArbiter
from engine.worker.changes import Changes
from engine.worker.image_share import ImageShare
from engine.worker.request_stream import RequestStream
from engine.worker.sleepers import Sleepers
from engine.worker.step_listeners import StepListeners
from engine.worker.supervisor import Supervisor
from engine.worker.text_gate import TextCheck
from engine.worker.worker_options import WorkerOptions

__all__ = [
    "EngineClient",
    "ImageStream",
    "OnGone",
    "ProcessEngineClient",
    "ReplicaState",
    "RequestEvents",
    "TokenStream",
    "WorkerOptions",
]

OnGone = Callable[[str, str | None], None]
_CHANGES = "adapter {name!r} is being loaded or unloaded; try again once that is done"

log = structlog.get_logger(__name__)

AnyEventT = TypeVar("AnyEventT", bound=Event, covariant=True)


class RequestEvents(Protocol[AnyEventT]):
    """An async iterator over a request's events. It ends after the last event of each completion or
    image."""

    def __aiter__(self) -> AsyncIterator[AnyEventT]: ...

    def end(self, index: int) -> None:
        """Abort one unfinished completion in the engine, because nobody reads it any more."""
        ...

    async def aclose(self) -> None:
        """Abort the unfinished part of the request in the engine. Idempotent."""
        ...


TokenStream = RequestEvents[TokenEvent]
ImageStream = RequestEvents[ImageEvent]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """What one of several workers of a model does."""

    name: str
    is_ready: bool
    num_requests: int
    """The number of unfinished requests that were routed to it."""
    stats: Stats | None
    """The statistics of its newest step."""


class EngineClient(Protocol):
    """The interface of the engine to the server."""

    steps: StepListeners
    """Listeners for every step that an engine reports."""
    check_text: TextCheck | None
    """Awaited with the path of each checkpoint that has a text side, before its model is ready; an
    exception that it raises becomes the reason of the model's failure. Set before `start`."""
    on_gone: OnGone | None
    """Called when a model is gone for good, with its id and, if no other model uses the same
    checkpoint's text side, with that checkpoint's path."""

    def submit(self, request: Request[EventT]) -> RequestEvents[EventT]:
        """Queue a request.

        The iterator raises `EngineDead` when the worker dies; other late failures arrive as events
        with finish reason `error`.

        Raises:
            UnknownModel: no model of that id is configured.
            InvalidParameter: the model does not offer the operation.
            ModelNotReady: it is loading, restarting or failed.
            ModelUnloading: the model is being unloaded.
            Draining: the client is being stopped.
        """
        ...

    def load(self, spec: ModelSpec) -> "asyncio.Task[Info]":
        """Begin to load another model, or one that failed before.

        Returns:
            The model once it serves. Otherwise raises ModelLoadError or EngineDead, or
            ModelConflict and Draining if it was unloaded or everything stopped meanwhile; then
            nothing is left of it. The load goes on even if nobody waits; a caller that may be
            cancelled must shield it.

        Raises:
            ModelConflict: a model of that name exists.
            InvalidParameter: its settings do not fit the server's.
            Draining: the client is being stopped.
            UnsupportedFeature: this client cannot load models at run time.
        """
        ...

    def unload(self, model: str, drain_timeout_s: float) -> "asyncio.Task[None]":
        """Begin to unload a model in any state; from now on it takes no requests.

        Running requests may finish within `drain_timeout_s`, and then end with `ModelUnloading`.

        Returns:
            Done when the worker has ended and its memory is free. Like a load, it goes on by
            itself.

        Raises:
            UnknownModel: there is no model of that id.
            ModelConflict: the model is already being unloaded.
            Draining, UnsupportedFeature: as in `load`.
        """
        ...

    async def wake(self, model: str) -> Info:
        """Wake a model, if it sleeps, and return it once it serves.

        Raises:
            ModelNotReady: it has not woken in time, or could not be loaded; the message says why.
            UnknownModel, ModelUnloading, Draining: as in `submit`.
        """
        ...

    def sleep(self, model: str, *, deep: bool = False) -> "asyncio.Task[None]":
        """Put a model to sleep once it has finished what it does. New requests wait, and wake it
        afterwards.

        Args:
            deep: whether its worker ends even if it could doze.

        Returns:
            Done when its memory is free, or when it is unloaded.

        Raises:
            ModelConflict: it is pinned.
            UnknownModel, ModelUnloading, Draining: as in `submit`.
        """
        ...

    def pin(self, model: str, pinned: bool) -> None:
        """Say whether a model may be put to sleep.

        Raises:
            UnknownModel: there is no model of that id.
        """
        ...

    def keep_alive(self, model: str, seconds: float | None) -> None:
        """Set the idle seconds after which a model of that id sleeps the next time; below 0 is
        never, and None is what the operator has set."""
        ...

    def reset_prefix_cache(self, model: str) -> None:
        """Have requests of a model of that id that come later find nothing of earlier ones in its
        prefix cache."""
        ...

    def profile(self, model: str, *, on: bool) -> None:
        """Start to profile the steps of a model of that id, or stop and write what was found."""
        ...

    def load_adapter(self, model: str, order: AdapterOrder) -> "asyncio.Future[AdapterReport]":
        """Begin to load a LoRA adapter. Requests can then use it by name, also after a restart of
        the worker.

        Returns:
            What was loaded. Otherwise raises ModelLoadError, TooManyAdapters, ModelConflict or
            EngineDead, and nothing has changed. Like a load of a model, it goes on by itself.

        Raises:
            ModelConflict: a model or an adapter of that name exists, or is being loaded or
                unloaded.
            UnknownModel, UnsupportedFeature, ModelNotReady, ModelUnloading, Draining: the model
                cannot have the adapter, or not now.
        """
        ...

    def unload_adapter(
        self, model: str, name: str, drain_timeout_s: float
    ) -> "asyncio.Future[None]":
        """Begin to unload an adapter; from now on it takes no requests. Running requests end as in
        `unload`.

        Raises:
            UnknownAdapter: the model has no adapter of that name.
            ModelConflict: the adapter is being replaced.
            UnknownModel, ModelNotReady, ModelUnloading, Draining: as in `load_adapter`.
        """
        ...

    def config(self, model: str) -> EngineConfig | None:
        """The model's configuration with its own settings; None if there is no model of that id."""
        ...

    def models(self) -> list[Info]:
        """The models that take requests, in the order in which they were configured or loaded.
        Those that sleep are among them, unless they have not served yet."""
        ...

    def made_for(self, operation: Operation[Any, Any, InfoT]) -> list[InfoT]:
        """The ready models that are made for that operation."""
        return [info for info in self.models() if isinstance(info, operation.info)]

    def infos(self, operation: Operation[Any, Any, InfoT]) -> list[InfoT]:
        """The infos of the ready models that offer that operation."""
        found = map(operation.info_among, self.models())
        return [info for info in found if info is not None]

    def statuses(self) -> list[ModelStatus]:
        """The status of every model: ready, loading, unloading or failed."""
        ...

    def is_asleep(self, model: str) -> bool:
        """Whether the model of that id sleeps, or has begun to wake."""
        return any(one.model == model and one.is_asleep for one in self.statuses())

    def stats(self, model: str) -> Stats | None:
        """The newest statistics of that model's engine."""
        ...

    def replicas(self, model: str) -> list[ReplicaState]:
        """The workers of a model that has several; empty if it has one."""
        return []

    def memory(self) -> list[DeviceMemory]:
        """The memory of each device that models run on, as far as it is known."""
        return []

    async def start(self) -> None:
        """Begin to load the models in the background and return at once; once begun, do nothing."""
        ...

    async def stop(self, drain_timeout_s: float) -> None:
        """Refuse new requests, let running ones finish within the timeout, then end the workers."""
        ...


class ProcessEngineClient(EngineClient):
    """A client with one supervised worker process per model; requests are routed by model id.

    The workers of a model with replicas are models here, whose specs have the same `served_as`
    (`engine.worker.replicas.client`)."""

    def __init__(self, specs: Sequence[ModelSpec], options: WorkerOptions) -> None:
        self.steps = StepListeners()
        self.check_text: TextCheck | None = None
        self.on_gone: OnGone | None = None
        self.on_lost: Callable[[str], None] | None = None
        """Called when a worker has ended, with its name."""
        self._has_started = self._draining = False
        self._options = options
        most_gib = options.config.memory_gib
        self._arbiter = MemoryArbiter(None if most_gib is None else int(most_gib * GIB))
        self._image_share = ImageShare(options.config.image_share, self._throttle)
        self._supervisors: dict[str, Supervisor] = {}
        file_bytes = int(options.config.sleep_file_gib * GIB)
        self._sleepers = Sleepers(self._supervisors, self._arbiter, file_bytes)
        self._supervisors |= {spec.name: self._supervisor(spec) for spec in specs}
        self._changes = Changes()
        """Loads and unloads in progress."""

    def submit(self, request: Request[EventT]) -> RequestStream[EventT]:
        self._check_not_draining()
        supervisor = self._supervisors.get(request.model)
        if supervisor is None:
            raise self._unknown(request.model)
        stream = supervisor.submit(request)
        is_sent = not supervisor.slumber.is_asleep
        if is_sent and supervisor.kind is not None and not supervisor.kind.yields:
            self._image_share.note(request.model, busy=True)
        return stream

    def load(self, spec: ModelSpec) -> asyncio.Task[Info]:
        self._check_not_draining()
        name = spec.name
        before = self._supervisors.get(name)
        if before is not None:
            if before.is_leaving:
                raise ModelConflict(
                    f"model {name!r} is being unloaded; load it again once that is done",
                    param="model",
                )
            if before.status.phase is not Phase.FAILED:
                is_loaded = before.info is not None
                doing = "is already loaded" if is_loaded else "is already being loaded"
                raise ModelConflict(
                    f"model {name!r} {doing}; unload it first or use another name",
                    param="model",
                )
        supervisor = self._supervisor(spec, on_demand=True)
        if before is not None:
            self._forget(before)
        self._supervisors[name] = supervisor
        supervisor.throttle(self._image_share.bound)
        supervisor.start()
        return self._changes.begin(self._finish_load(supervisor))

    def unload(self, model: str, drain_timeout_s: float) -> asyncio.Task[None]:
        self._check_not_draining()
        supervisor = self._supervisors.get(model)
        if supervisor is None:
            raise self._unknown(model)
        if supervisor.is_leaving:
            raise ModelConflict(f"model {model!r} is already being unloaded", param="model")
        supervisor.leave()
        return self._changes.begin(self._finish_unload(supervisor, drain_timeout_s))

    async def wake(self, model: str) -> Info:
        return await self._sleepers.awake(self._staying(model))

    def sleep(self, model: str, *, deep: bool = False) -> asyncio.Task[None]:
        supervisor = self._staying(model)
        if supervisor.slumber.pinned:
            raise ModelConflict(f"model {model!r} is pinned; unpin it first", param="model")
        return self._changes.begin(self._sleepers.rest(supervisor, deep=deep))

    def pin(self, model: str, pinned: bool) -> None:
        self._staying(model).slumber.pinned = pinned

    def keep_alive(self, model: str, seconds: float | None) -> None:
        supervisor = self._supervisors.get(model)
        if supervisor is not None:
            own = supervisor.config.sleep_idle_seconds
            supervisor.slumber.keep_alive_s = own if seconds is None else seconds

    def reset_prefix_cache(self, model: str) -> None:
        if model in self._supervisors:
            self._supervisors[model].reset_prefix_cache()

    def profile(self, model: str, *, on: bool) -> None:
        if model in self._supervisors:
            self._supervisors[model].profile(on=on)

    def load_adapter(self, model: str, order: AdapterOrder) -> asyncio.Future[AdapterReport]:
        supervisor = self._supervisor_of(model)
        self._check_adapter_name(supervisor, order)
        return supervisor.load_adapter(order)

    def unload_adapter(self, model: str, name: str, drain_timeout_s: float) -> asyncio.Future[None]:
        supervisor = self._supervisor_of(model)
        if name in supervisor.adapter_changes:
            raise ModelConflict(_CHANGES.format(name=name), param="lora_name")
        return self._changes.keep(supervisor.unload_adapter(name, drain_timeout_s))

    def config(self, model: str) -> EngineConfig | None:
        return self._supervisors[model].config if model in self._supervisors else None

    def info(self, model: str) -> Info | None:
        """What is known of a model, which need not be ready; None until it has served."""
        return self._supervisors[model].info if model in self._supervisors else None

    def is_ready(self, model: str) -> bool:
        """Whether requests to a model are sent at once."""
        one = self._supervisors.get(model)
        return one is not None and one.is_ready and not (one.is_leaving or one.slumber.delays)

    def waits(self, model: str) -> bool:
        """Whether requests to a model are taken, and wait until it has woken."""
        one = self._supervisors.get(model)
        if one is None or one.info is None or one.is_leaving:
            return False
        return one.slumber.delays

    async def settle(self, model: str) -> None:
        """Return once a model serves, sleeps, has failed or is being unloaded."""
        await self._supervisors[model].wait_until_settled()

    def models(self) -> list[Info]:
        return [
            s.info
            for s in self._supervisors.values()
            if s.info is not None and (s.is_ready or s.slumber.is_asleep) and not s.is_leaving
        ]

    def statuses(self) -> list[ModelStatus]:
        return [s.status for s in self._supervisors.values()]

    def stats(self, model: str) -> Stats | None:
        return self._supervisors[model].stats if model in self._supervisors else None

    def memory(self) -> list[DeviceMemory]:
        return self._arbiter.devices()

    async def start(self) -> None:
        if self._has_started:
            return
        self._has_started = True
        # The models are wanted in their order, the first ones most.
        for place, supervisor in enumerate(self._supervisors.values(), 1):
            slumber = supervisor.slumber
            slumber.used_s, slumber.begun_s = -place, place - len(self._supervisors)
            supervisor.start()
        self._sleepers.start()

    async def stop(self, drain_timeout_s: float) -> None:
        self._draining = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                for supervisor in list(self._supervisors.values()):
                    await supervisor.wait_until_idle()
        self._sleepers.stop()
        await asyncio.gather(*(s.stop() for s in self._supervisors.values()))
        await self._changes.wait()

    def _supervisor(self, spec: ModelSpec, *, on_demand: bool = False) -> Supervisor:
        return Supervisor(
            spec,
            self._options,
            self._arbiter,
            self._report,
            self._note_idle,
            self._check_text,
            self._sleepers,
            on_demand=on_demand,
        )

    def _staying(self, model: str) -> Supervisor:
        """A model that is not being unloaded."""
        supervisor = self._supervisor_of(model)
        if supervisor.is_leaving:
            raise ModelUnloading(f"model {model!r} is being unloaded", param="model")
        return supervisor

    def _supervisor_of(self, model: str) -> Supervisor:
        self._check_not_draining()
        supervisor = self._supervisors.get(model)
        if supervisor is None:
            raise self._unknown(model)
        return supervisor

    def _check_adapter_name(self, owner: Supervisor, order: AdapterOrder) -> None:
        """Check that no other model or adapter has or will have that name.

        Raises:
            ModelConflict: one has or will have it.
        """
        name = order.name
        for supervisor in self._supervisors.values():
            if supervisor is not owner and supervisor.spec.served_as == owner.spec.served_as:
                continue  # a replica, which has or will have the same adapters
            if name in supervisor.adapter_changes:
                raise ModelConflict(_CHANGES.format(name=name), param="lora_name")
            if supervisor.info is None:
                names = list(supervisor.config.adapters)
            else:
                names = supervisor.info.names
            if supervisor is owner and order.replaces:
                names = []
            if name in [supervisor.spec.name, supervisor.spec.served_as, *names]:
                raise ModelConflict(
                    f"{name!r} is already served; unload it first or use another name",
                    param="lora_name",
                )

    async def _finish_load(self, supervisor: Supervisor) -> Info:
        await supervisor.wait_until_settled()
        name = supervisor.spec.name
        if supervisor.info is not None and not supervisor.is_leaving:
            return supervisor.info
        failure = supervisor.status.failure
        if failure is not None:
            self._remove(supervisor)
            hint = {} if failure.hint is None else {"hint": failure.hint}
            log.error(
                "model failed to load", model=name, code=failure.code, cause=failure.message, **hint
            )
            raise failure.error()
        self._check_not_draining()
        raise ModelConflict(f"model {name!r} was unloaded before it was loaded", param="model")

    async def _finish_unload(self, supervisor: Supervisor, drain_timeout_s: float) -> None:
        started_s = time.monotonic()
        try:
            await supervisor.unload(drain_timeout_s)
        finally:
            self._remove(supervisor)
        seconds = round(time.monotonic() - started_s, 1)
        log.info("model unloaded", model=supervisor.spec.name, seconds=seconds)

    def _remove(self, supervisor: Supervisor) -> None:
        """Remove a model from the table once its worker has ended."""
        name = supervisor.spec.name
        if self._supervisors.get(name) is supervisor:
            del self._supervisors[name]
            self._forget(supervisor)

    def _forget(self, supervisor: Supervisor) -> None:
        name, path = supervisor.spec.name, supervisor.text_path
        others = [s for s in self._supervisors.values() if s is not supervisor]
        if any(other.text_path == path for other in others):
            path = None
        if self.on_gone is not None:
            self.on_gone(name, path)

    def _check_not_draining(self) -> None:
        if self._draining:
            raise Draining("the server is shutting down; send the request to another one")

    def _unknown(self, model: str) -> UnknownModel:
        names = (
            ", ".join(info.model for info in self.models()) or "the models that GET /ready lists"
        )
        return UnknownModel(f"model {model!r} is not served; use one of {names}", param="model")

    async def _check_text(self, path: str) -> int:
        return 0 if self.check_text is None else await self.check_text(path)

    def _report(self, model: str, stats: Stats) -> None:
        if not kind_of(stats).yields:
            self._image_share.note(model, busy=stats.is_busy)
        self.steps.tell(model, stats)

    def _note_idle(self, model: str) -> None:
        """Note that a model's worker has ended and needs no share of the time any more."""
        self._image_share.note(model, busy=False)
        if self.on_lost is not None:
            self.on_lost(model)

    def _throttle(self, share: float | None) -> None:
        for supervisor in self._supervisors.values():
            if supervisor.kind is None or supervisor.kind.yields:
                supervisor.throttle(share)
