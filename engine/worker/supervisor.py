"""Keeps one model's worker process alive and carries its requests.

Runs on the server's event loop. When a worker dies, its requests end with `EngineDead` and a new
one is started, after growing pauses; a worker that says it cannot load stays down, with the reason.
A model that is unloaded takes no more requests, finishes those that it has, and then its worker
ends. A model that sleeps has no worker either, but its requests wait until it has woken.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextvars import Context
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.gpus import command_on, device_of_account
from engine.contract.kinds import Kind, kind_of
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import operation_of
from engine.contract.request import EventT, Info, Request, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.contract.worker_settings import CpuIsa
from engine.errors import (
    EngineDead,
    EngineError,
    Failure,
    InsufficientMemory,
    InvalidParameter,
    ModelNotReady,
    ModelUnloading,
    UnknownAdapter,
)
from engine.processes.own_packages import module_command
from engine.processes.watchdog import Watchdog
from engine.runtime.memory import MemoryArbiter
from engine.worker import messages
from engine.worker.adapter_changes import AdapterChanges
from engine.worker.request_stream import RequestStream, StreamTable
from engine.worker.text_gate import TextCheck, TextGate
from engine.worker.wake_queue import WakeQueue
from engine.worker.worker_process import WorkerProcess

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A worker that lived for this time is restarted without a pause."""
STOP_GRACE_S = 5.0

RELOAD_PAUSE_S = 10.0
"""The least time between two wakes of a model."""

log = structlog.get_logger(__name__)


class Housekeeper(Protocol):
    """Decides which models sleep."""

    def want(self, supervisor: "Supervisor") -> Awaitable[None]:
        """Wake a model. The result is there when it serves, or when nobody waits for it any
        more."""
        ...

    async def make_room(self, supervisor: "Supervisor", device: str, num_bytes: int) -> bool | None:
        """Have others sleep until a model can get that much memory. False: it never can. None: not
        now, and nobody waits for it."""
        ...


_LOADING = (Phase.STARTING, Phase.DOWNLOADING, Phase.LOADING, Phase.WARMING_UP)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What every worker is told in addition to its model."""

    config: EngineConfig
    """The server's configuration; a model may have settings of its own."""
    cache_dir: Path
    offline: bool = False
    cpu_isa: CpuIsa = "auto"
    log_format: str = "console"
    log_level: str = "info"
    stderr: int | None = None
    """The file descriptor that workers get as standard error; None is the server's."""
    command: tuple[str, ...] = module_command("engine.worker.loop")
    tunables: str = ""
    """glibc's settings for workers, as in GLIBC_TUNABLES; empty are the server's."""
    visible_gpus: tuple[str, ...] | None = None
    """CUDA's names of the GPUs that the server may use; None is all."""


class Supervisor:
    """Starts, watches and restarts one model's worker, and talks to it.

    Args:
        on_stats: called with each step's report.
        on_lost: called when a worker and its requests are gone.
        housekeeper: wakes the model and makes room for it.
        on_demand: the model is loaded while the server runs. A worker that ends before its model
            was ready is then not restarted: the caller of the load is told why.

    Attributes:
        config: the model's own configuration, with the adapters that its next worker will have.
        stats: the statistics of the running worker's newest step, if there is one.
        adapter_changes: the orders that the worker has not answered yet.
        pinned: whether the model never sleeps.
        keep_alive_s: the idle seconds after which it sleeps; below 0 is never.
        used_s, begun_s: when it last did something, and when its load began, on the monotonic
            clock. At the start both are below 0, in the order of the models.
        planned: the memory that it held on each device when it last began to serve.
        text_path: the path of the checkpoint, once found and if it has a text side.
    """

    def __init__(
        self,
        spec: ModelSpec,
        options: WorkerOptions,
        arbiter: MemoryArbiter,
        on_stats: Callable[[str, Stats], None],
        on_lost: Callable[[str], None],
        check_text: TextCheck,
        housekeeper: Housekeeper,
        *,
        on_demand: bool = False,
    ) -> None:
        self.spec = spec
        self.config = spec.config(options.config)
        self.info: Info | None = None
        self.stats: Stats | None = None
        self.pinned = self.config.pinned
        self.keep_alive_s = self.config.sleep_idle_seconds
        self.used_s = self.begun_s = time.monotonic()
        self.planned: Mapping[str, int] = {}
        self.num_awaiting = 0
        self._status = ModelStatus(model=spec.name, phase=Phase.STARTING, joining=on_demand)
        self.text_path: str | None = None
        self._on_demand = on_demand
        self._options = options
        self._arbiter = arbiter
        self._on_stats = on_stats
        self._on_lost = on_lost
        self._check_text = check_text
        self._gate = self._new_gate()
        self._housekeeper = housekeeper
        self._streams = StreamTable(self._abort)
        self._queue = WakeQueue(self._refuse_late)
        self._is_asleep = False
        self._holds_back = False
        self._woken_s: float | None = None
        self._num_wakes = 0
        self._wake_time_s = 0.0
        self._falling_asleep: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        """Asks for memory that is not free yet."""
        self.adapter_changes = AdapterChanges(self._send)
        self._worker: WorkerProcess | None = None
        self._task: asyncio.Task[None] | None = None
        self._failure: Failure | None = None
        self._restarts = 0
        self._stalls = 0
        self._stall: str | None = None
        """The reason for ending a worker that hung."""
        self._exit_cause: str | None = None
        """How the last worker ended, if unexpectedly."""
        self._kind: str | None = None
        self._share: float | None = None
        self._is_loaded = False
        """Whether the running worker has loaded its model."""
        self._is_leaving = False
        self._has_served = False
        """Whether a worker has served since the start or the last wake."""
        self._over = asyncio.Event()
        """Set when no more workers are to be started."""
        self._settled = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the model takes requests."""
        return self._status.phase is Phase.READY

    @property
    def is_leaving(self) -> bool:
        """Whether the model takes no more requests and its worker will end."""
        return self._is_leaving

    @property
    def is_asleep(self) -> bool:
        """Whether requests wait for the model to wake."""
        return self._is_asleep

    @property
    def is_loading(self) -> bool:
        """Whether a worker loads the model."""
        return self._worker is not None and not self._is_loaded

    @property
    def is_wanted(self) -> bool:
        """Whether anybody waits for the model to wake."""
        return len(self._queue) > 0 or self.num_awaiting > 0

    @property
    def is_idle(self) -> bool:
        """Whether the worker serves and has nothing to do."""
        has_work = self._is_busy or self.adapter_changes or self.num_awaiting
        return self._is_loaded and self.is_ready and not has_work

    @property
    def _is_busy(self) -> bool:
        """Whether the worker has requests."""
        return len(self._streams) > len(self._queue)

    @property
    def is_rested(self) -> bool:
        """Whether the last wake is long enough ago for another change."""
        return self._woken_s is None or time.monotonic() - self._woken_s >= RELOAD_PAUSE_S

    @property
    def has_ended(self) -> bool:
        """Whether no worker runs or will be started by itself."""
        return self._task is None or self._task.done()

    @property
    def status(self) -> ModelStatus:
        """What the model does now."""
        is_asleep = self._is_asleep
        return replace(
            self._status,
            waking=is_asleep and self._status.phase is not Phase.SLEEPING,
            pinned=self.pinned,
            num_wakes=self._num_wakes,
            wake_time_s=self._wake_time_s,
            idle_s=0.0 if is_asleep or not self.is_idle else time.monotonic() - self.used_s,
            sleep_after_s=None if self.pinned or self.keep_alive_s < 0 else self.keep_alive_s,
        )

    @property
    def kind(self) -> Kind | None:
        """The model's kind; None until it was ready for the first time."""
        return None if self.info is None else kind_of(self.info)

    def start(self) -> None:
        """Begin to supervise, in a task of its own. The task outlives the request that may have
        started it, so its log lines must not carry that request's id."""
        self._task = asyncio.create_task(
            self._supervise(), name=f"supervise {self.spec.name}", context=Context()
        )

    def submit(self, request: Request[EventT]) -> RequestStream[EventT]:
        """Send a request to the worker.

        Raises:
            InvalidParameter: the model does not offer what the request asks for.
            ModelUnloading: the model is being unloaded.
            ModelNotReady: there is no worker that could take the request now.
        """
        waits = self.info is not None and (self._is_asleep or self._holds_back)
        info = self.info if waits and not self._is_leaving else self._ready_info()
        assert info is not None
        if operation_of(request).info_among(info) is None:
            makes = " and ".join(operation_of(one).makes for one in (info, *info.parts))
            raise InvalidParameter(f"model {self.spec.name!r} makes {makes}", param="model")
        frames = messages.frames_of(messages.Submit.of(request))
        # Not before it could be written: a stream without a request would never end.
        stream = self._streams.open(request)
        self.used_s = time.monotonic()
        if waits:
            self._queue.add(request.request_id, frames, self.config.wake_timeout_s)
            self._housekeeper.want(self)
        else:
            self._send_frames(frames)
        return stream

    def _abort(self, request_id: str, index: int | None) -> None:
        abort = messages.Abort(request_id, index)
        waits = self._queue.abort(request_id, None if index is None else messages.frames_of(abort))
        if not waits:
            self._send(abort)

    def _refuse_late(self, request_id: str) -> None:
        self._streams.fail(request_id, self.not_woken())

    def not_woken(self) -> ModelNotReady:
        """The error for those who waited in vain for the model to wake."""
        failure = self._status.failure
        reason = f"has not woken within {self.config.wake_timeout_s:g} s; try again later"
        if failure is not None:
            reason = f"could not be woken: {failure.message}"
        error = ModelNotReady(f"model {self.spec.name!r} sleeps and {reason}", param="model")
        error.retry_after_s = round(RELOAD_PAUSE_S)
        return error

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Count as somebody who waits for the model."""
        self.num_awaiting += 1
        try:
            yield
        finally:
            self.num_awaiting -= 1

    def hold_back(self) -> None:
        """Let the worker finish what it has; new requests wait as if the model slept."""
        self._holds_back = True

    def let_go(self) -> None:
        """Send the requests that were held back."""
        self._holds_back = False
        for frames in self._queue.take():
            self._send_frames(frames)

    def fall_asleep(self) -> "asyncio.Task[None]":
        """End the worker of a model without work, and keep everything else. Requests wait from now
        on; a wake begins once this is done."""
        if self._falling_asleep is None:
            self._is_asleep = True
            self._holds_back = False
            self.keep_alive_s = self.config.sleep_idle_seconds
            self._set_phase(Phase.SLEEPING)
            self._falling_asleep = asyncio.create_task(self._fall_asleep(), context=Context())
        return self._falling_asleep

    def wake(self) -> None:
        """Load a sleeping model again."""
        self._over = asyncio.Event()
        self._settled = asyncio.Event()
        self._falling_asleep = None
        self._has_served = False
        self._woken_s = time.monotonic()
        self._set_phase(Phase.STARTING)
        self.start()

    def load_adapter(self, order: AdapterOrder) -> "asyncio.Future[AdapterReport]":
        """Have this worker and its successors load an adapter. The caller must make sure that the
        name is free.

        Raises:
            UnsupportedFeature: models of this kind have no adapters.
            ModelUnloading, ModelNotReady: as in `submit`.
        """
        self._ready_info().with_adapter(order.name)
        return self.adapter_changes.load(order)

    def unload_adapter(self, name: str, drain_timeout_s: float) -> "asyncio.Task[None]":
        """Take no more requests for an adapter from now on. Running ones may finish within the
        timeout and then end with `ModelUnloading`.

        Raises:
            UnknownAdapter: there is no adapter of that name.
            ModelUnloading, ModelNotReady: as in `submit`.
        """
        info = self._ready_info()
        if name not in info.names or name == info.model:
            raise UnknownAdapter(
                f"model {self.spec.name!r} has no adapter {name!r}", param="lora_name"
            )
        self._serve_adapters(info.without_adapter(name), self.config.adapters)
        gone = self.adapter_changes.unload(name)
        return asyncio.create_task(self._wait_for_adapter(name, gone, drain_timeout_s))

    async def _wait_for_adapter(
        self, name: str, gone: "asyncio.Future[None]", drain_timeout_s: float
    ) -> None:
        done, _ = await asyncio.wait([gone], timeout=drain_timeout_s)
        if not done:
            self._streams.end_adapter(
                name,
                ModelUnloading(
                    f"adapter {name!r} was unloaded before the request was complete; send it to "
                    f"another model"
                ),
            )
        await gone

    def _ready_info(self) -> Info:
        """The info of a model that can take requests.

        Raises:
            ModelUnloading: the model is being unloaded.
            ModelNotReady: there is no worker that could do something now.
        """
        if self._is_leaving:
            raise ModelUnloading(f"model {self.spec.name!r} is being unloaded", param="model")
        if not self.is_ready or self._worker is None or self.info is None:
            raise ModelNotReady(
                f"model {self.spec.name!r} is not ready: {self.status.phase}"
                f"{f' ({self.status.news})' if self.status.news else ''}; "
                f"wait until GET /ready answers 200"
            )
        return self.info

    def throttle(self, share: float | None) -> None:
        """Limit the share of time that the worker's steps take; None removes the limit."""
        self._share = share
        if self._is_loaded:
            self._send(messages.Throttle(share))

    async def wait_until_idle(self) -> None:
        """Return once no request of the worker is unfinished."""
        await self._streams.wait_until_empty()

    async def wait_until_settled(self) -> None:
        """Return once the model serves, has failed, or is being unloaded."""
        await self._settled.wait()

    def leave(self) -> None:
        """Take no more requests from now on, and start no more workers."""
        self._is_leaving = True
        self._over.set()
        self._set_phase(Phase.DRAINING, "it is being unloaded")
        self._settled.set()
        self._end_waiting(self._unloaded())

    async def unload(self, drain_timeout_s: float) -> None:
        """After `leave`: let running requests finish within the timeout, then end them and the
        worker.

        Requests that do not finish end with `ModelUnloading`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                await self.wait_until_idle()
        self._streams.fail_all(self._unloaded())
        await self.stop()

    def _unloaded(self) -> ModelUnloading:
        return ModelUnloading(
            f"model {self.spec.name!r} was unloaded before the request was complete; send it to "
            f"another model"
        )

    def _end_waiting(self, error: EngineError) -> None:
        """End the requests that wait for the model to wake."""
        for request_id in self._queue.clear():
            self._streams.fail(request_id, error)

    async def stop(self) -> None:
        """End the worker: by a message, then by force. A worker that is still loading cannot read
        messages and is killed. Its requests end with `EngineDead`. Idempotent."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(), name=f"stop {self.spec.name}")
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        self._is_leaving = True
        await self._end_worker()
        self._end_waiting(EngineDead(f"the worker of model {self.spec.name!r} ended; try again"))
        self._set_phase(Phase.STOPPED)
        self._settled.set()

    async def _fall_asleep(self) -> None:
        await self._end_worker()
        self._settled.set()
        log.info("model sleeps", model=self.spec.name)
        if self.is_wanted:
            self._housekeeper.want(self)

    async def _end_worker(self) -> None:
        self._over.set()
        worker = self._worker
        if worker is not None:
            if worker.is_alive and self._is_loaded:
                worker.send(messages.Shutdown())
                await worker.wait(STOP_GRACE_S)
            worker.kill()
        if self._task is not None:
            await self._task  # not cancelled, as it closes what belongs to the worker

    async def _supervise(self) -> None:
        """Run workers, one after the other, until told to stop or the model cannot be loaded."""
        pause_s = FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while not self._over.is_set():
            started_s = loop.time()
            try:
                await self._run_worker()
            except Exception:
                # For example a message that cannot be decoded. The model must not stay without a
                # worker, so a new one is started, as after a worker's death.
                log.exception(
                    "the server cannot handle what a worker sent; the worker is restarted",
                    model=self.spec.name,
                )
            finally:
                self._lose_worker()
            if self._over.is_set():
                return
            is_awaited = self._on_demand or self._is_asleep
            if not self._has_served and is_awaited and self._failure is None:
                self._failure = self._death()
            is_first = is_awaited or self._restarts == 0
            if self._failure is not None and not self._has_served and is_first:
                self._fail(self._failure)
                return
            if loop.time() - started_s > HEALTHY_AFTER_S:
                pause_s = FIRST_PAUSE_S
            self._restarts += 1
            self._set_phase(Phase.RESTARTING, f"the worker ended; it is restarted in {pause_s:g} s")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), pause_s)
                return
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _run_worker(self) -> None:
        """Start one worker and serve it until it ends."""
        self._failure = self._stall = self._exit_cause = None
        self._gate = self._new_gate()
        worker = self._worker = WorkerProcess()
        try:
            self._set_phase(Phase.STARTING)
            options = self._options
            command = command_on(self.config.device, options.visible_gpus, options.command)
            if options.tunables:
                command = ["env", f"GLIBC_TUNABLES={options.tunables}", *command]
            await worker.start(command, options.stderr, self._describe)
            watching = asyncio.create_task(self._watch(worker))
            try:
                async with contextlib.aclosing(worker.received()) as received:
                    async for message in received:
                        self._receive(message)
            finally:
                watching.cancel()
        finally:
            self._note_end(await worker.end())

    def _describe(self, address: str, pulse_fd: int) -> messages.WorkerSpec:
        return messages.WorkerSpec(
            address=address,
            ref=self.spec.ref,
            model=self.spec.name,
            config=self.config,
            cache_dir=str(self._options.cache_dir),
            offline=self._options.offline,
            cpu_isa=self._options.cpu_isa,
            log_format=self._options.log_format,
            log_level=self._options.log_level,
            pulse_fd=pulse_fd,
        )

    async def _watch(self, worker: WorkerProcess) -> None:
        """End a worker that hangs; `_run_worker` notices its end."""
        config, clock = self.config, asyncio.get_running_loop().time
        watchdog = Watchdog(config.worker_timeout_s, config.step_timeout_s)
        ticked_s = clock()
        while self._stall is None:
            await asyncio.sleep(watchdog.period_s)
            pulse, last_s, ticked_s = worker.pulse(), ticked_s, clock()
            if pulse is not None:
                watchdog.on_pulse(pulse)
            self._stall = watchdog.tick(
                ticked_s - last_s,
                is_ready=self._is_loaded,
                is_busy=self._is_busy,
            )
        self._stalls += 1
        log.error("a worker hangs and is restarted", model=self.spec.name, reason=self._stall)
        self._set_phase(Phase.RESTARTING, "the worker hung and is being restarted")
        await worker.kill_with_last_words()

    def _receive(self, message: messages.FromWorker) -> None:
        match message:
            case messages.Step():
                events, stats = message.read()
                self.stats = stats
                self.used_s = time.monotonic()
                self._streams.deliver(events)
                self._on_stats(self.spec.name, stats)
            case messages.Progress(phase=phase, progress=progress, detail=detail, kind=kind):
                self._kind = kind or self._kind
                self._set_phase(phase, detail, progress=progress)
            case messages.Reserve():
                self._reserve(message)
            case messages.Release(id=id):
                self._arbiter.release(self.spec.name, id)
            case messages.Found(path=path):
                self.text_path = path
                self._gate.found(path)
            case messages.Ready():
                self._gate.loaded(message.read())
            case messages.AdapterChanged():
                self._end_adapter_change(message)
            case messages.Refused(request_id=request_id, failure=failure):
                self._streams.fail(request_id, failure.error())
            case messages.Failed(failure=failure):
                self._failure = failure

    def _end_adapter_change(self, answer: messages.AdapterChanged) -> None:
        loaded = self.adapter_changes.end(answer)
        if loaded is not None and self.info is not None:
            folders = {**self.config.adapters, loaded.name: loaded.folder}
            digest = "" if answer.report is None else answer.report.digest
            self._serve_adapters(self.info.with_adapter(loaded.name, digest), folders)

    def _serve_adapters(self, info: Info, folders: Mapping[str, str]) -> None:
        """Take requests for the adapters of `info`, and give them to the next worker, too."""
        self.info = info
        served = {name: folder for name, folder in folders.items() if name in info.names}
        self.config = self.config.with_adapters(served)

    def _new_gate(self) -> TextGate:
        return TextGate(self._check_text, self._serve_requests, self._give_up)

    def _serve_requests(self, info: Info) -> None:
        if self._over.is_set():
            return
        self.info = info
        self._is_loaded = self._has_served = True
        self.planned = self._arbiter.held_by(self.spec.name)
        self.used_s = time.monotonic() if self._is_asleep else self.used_s
        if self._is_asleep and self._woken_s is not None:
            self._num_wakes += 1
            self._wake_time_s += time.monotonic() - self._woken_s
        self._is_asleep = False
        self._set_phase(Phase.READY)
        self._settled.set()
        if kind_of(info).yields:
            self.throttle(self._share)
        self.let_go()
        log.info("model ready", model=self.spec.name, **info.log_fields)

    def _give_up(self, failure: Failure) -> None:
        """End a worker whose model cannot be served, in whatever state it is."""
        self._failure = failure
        if self._worker is not None:
            self._worker.kill()

    def _fail(self, failure: Failure) -> None:
        self._set_phase(Phase.SLEEPING if self._is_asleep else Phase.FAILED, failure=failure)
        self._settled.set()
        if self._is_asleep:
            log.error("a model cannot be woken", model=self.spec.name, cause=failure.message)
            self._end_waiting(self.not_woken())

    def _death(self) -> Failure:
        """The failure of a worker that ended without giving a reason."""
        cause = self._stall or self._exit_cause or "the cause is unknown"
        return Failure(
            EngineDead.code,
            f"the worker of model {self.spec.name!r} ended while it loaded the model: {cause}; see "
            f"the server's log",
        )

    def _reserve(self, ask: messages.Reserve, *, will_never_fit: bool = False) -> None:
        device = device_of_account(ask.device, self.config.device)
        self._arbiter.ensure_budget(device, ask.capacity_bytes)
        try:
            self._arbiter.reserve(self.spec.name, ask.id, device, ask.purpose, ask.num_bytes)
            self._send(messages.Granted(ask.id, self._arbiter.free(device)))
        except InsufficientMemory as error:
            if self._is_loaded or will_never_fit:
                self._send(messages.Denied(ask.id, Failure.of(error)))
            else:
                self._asking = asyncio.create_task(self._ask_for_room(ask, device))

    async def _ask_for_room(self, ask: messages.Reserve, device: str) -> None:
        """Answer a loading worker once others have made room for it, or cannot."""
        held = self._arbiter.held(device, self.spec.name)
        wanted = max(ask.num_bytes, self.planned.get(device, 0) - held)
        fits = await self._housekeeper.make_room(self, device, wanted)
        if fits is None and (self.info is not None or not self._on_demand):
            self.fall_asleep()
        else:
            self._reserve(ask, will_never_fit=not fits)

    def _send(self, message: messages.ToWorker) -> None:
        self._send_frames(messages.frames_of(message))

    def _send_frames(self, frames: list[bytes]) -> None:
        if self._worker is not None:
            self._worker.send_frames(frames)

    def _note_end(self, code: int | None) -> None:
        """Log how a worker ended, if its end was unexpected."""
        if not code or (self.is_leaving and not self._is_loaded):
            return
        cause = self._exit_cause = f"signal {-code}" if code < 0 else f"exit code {code}"
        if self._failure is not None:
            cause = self._failure.message
        if self._failure is None or self.info is not None:  # otherwise the status says it
            log.error("worker ended", model=self.spec.name, cause=cause)

    def _lose_worker(self) -> None:
        """Clean up after a worker's end, which also ended its requests and freed its memory."""
        self._worker = None
        self._is_loaded = False
        if self._asking is not None:
            self._asking.cancel()
        self.stats = None  # the next worker reports no step before it has a request
        self._gate.close()
        self._arbiter.release_all(self.spec.name)
        self._set_phase(Phase.RESTARTING)
        reason = f": {self._failure.message}" if self._failure else ""
        if self._stall is not None:
            reason = f": {self._stall}"
        death = EngineDead(f"the worker of model {self.spec.name!r} ended{reason}; try again")
        self._streams.fail_all(death, but=self._queue)
        self.adapter_changes.end_all(death)
        self._on_lost(self.spec.name)

    def _set_phase(
        self,
        phase: Phase,
        detail: str | None = None,
        *,
        progress: float | None = None,
        failure: Failure | None = None,
    ) -> None:
        if self._is_leaving and phase not in (Phase.DRAINING, Phase.STOPPED):
            return  # a model that is being unloaded stays so, whatever its worker does
        if self._over.is_set() and phase in (Phase.RESTARTING, Phase.READY, *_LOADING):
            return  # so does one that falls asleep
        self._status = ModelStatus(
            model=self.spec.name,
            phase=phase,
            progress=progress,
            detail=detail,
            failure=failure,
            restarts=self._restarts,
            stalls=self._stalls,
            kind=self._kind,
            joining=self._on_demand and self.info is None,
        )
