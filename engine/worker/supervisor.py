"""Keeps one model's worker process alive and carries its requests.

Runs on the server's event loop. When a worker dies, its requests end with `EngineDead` and a new
one is started, after growing pauses; a worker that says it cannot load stays down, with the reason.
A model that is unloaded takes no more requests, finishes those that it has, and then its worker
ends. A model that sleeps has no worker either, but its requests wait until it has woken.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from functools import partial
from typing import Protocol

import structlog

from engine.contract.adapter_orders import AdapterOrder, AdapterReport
from engine.contract.kinds import Kind, kind_of
from engine.contract.model_spec import ModelSpec
from engine.contract.operations import operation_of
from engine.contract.request import EventT, Info, Request, Stats
from engine.contract.status import ModelStatus, Phase
from engine.errors import (
    EngineDead,
    EngineError,
    Failure,
    InvalidParameter,
    ModelNotReady,
    ModelUnloading,
    UnknownAdapter,
)
from engine.processes.exit_code import cause_of_end
from engine.processes.watchdog import Watchdog
from engine.runtime.memory import MemoryArbiter
from engine.worker import messages
from engine.worker.adapter_changes import AdapterChanges
from engine.worker.memory_desk import MemoryDesk
from engine.worker.request_stream import RequestStream, StreamTable
from engine.worker.slumber import Slumber
from engine.worker.text_gate import TextCheck, TextGate
from engine.worker.worker_options import WorkerOptions
from engine.worker.worker_process import WorkerProcess

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
HEALTHY_AFTER_S = 60.0
"""A worker that lived for this time is restarted without a pause."""
STOP_GRACE_S = 5.0

log = structlog.get_logger(__name__)


class Housekeeper(Protocol):
    """Decides which models sleep."""

    @property
    def doze_bytes(self) -> int:
        """The largest file that the next model may keep its memory in while it sleeps."""
        ...

    def want(self, supervisor: "Supervisor") -> Awaitable[None]:
        """Wake a model. The result is there when it serves, or when nobody waits for it any
        more."""
        ...

    async def make_room(self, supervisor: "Supervisor", device: str, num_bytes: int) -> bool | None:
        """Have others sleep until a model can get that much memory. False: it never can. None: not
        now, and nobody waits for it."""
        ...


_LOADING = (Phase.STARTING, Phase.DOWNLOADING, Phase.LOADING, Phase.WARMING_UP)


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
        slumber: the model's sleep.
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
        self.slumber = Slumber(spec.name, self.config, self._refuse_late)
        self._status = ModelStatus(model=spec.name, phase=Phase.STARTING, joining=on_demand)
        self.text_path: str | None = None
        self._on_demand = on_demand
        self._options = options
        device = self.config.device
        self._desk = MemoryDesk(spec.name, device, arbiter, self._send, self._make_room)
        self._on_stats = on_stats
        self._on_lost = on_lost
        self._check_text = check_text
        self._gate = self._new_gate()
        self._housekeeper = housekeeper
        self._streams = StreamTable(self._abort)
        self._falling_asleep: asyncio.Task[None] | None = None
        self._dozed: asyncio.Future[messages.Dozing | None] | None = None
        """The worker's answer to the order to doze; None if it has ended instead."""
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
        self._was_dozing = False
        """Whether a worker that dozed is told to wake."""
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
    def is_loading(self) -> bool:
        """Whether a worker loads the model."""
        return self._worker is not None and not self._is_loaded

    @property
    def is_idle(self) -> bool:
        """Whether the worker serves and has nothing to do."""
        has_work = self._is_busy or self.adapter_changes or self.slumber.num_awaiting
        return self._is_loaded and self.is_ready and not has_work

    @property
    def _is_busy(self) -> bool:
        """Whether the worker has requests."""
        return len(self._streams) > len(self.slumber.queue)

    @property
    def has_ended(self) -> bool:
        """Whether no worker runs or will be started by itself."""
        return self._task is None or self._task.done()

    @property
    def status(self) -> ModelStatus:
        """What the model does now."""
        is_idle = not self.slumber.is_asleep and self.is_idle
        return self.slumber.shown_in(self._status, is_idle=is_idle)

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
        waits = self.info is not None and self.slumber.delays
        info = self.info if waits and not self._is_leaving else self._ready_info()
        assert info is not None
        if operation_of(request).info_among(info) is None:
            makes = " and ".join(operation_of(one).makes for one in (info, *info.parts))
            raise InvalidParameter(f"model {self.spec.name!r} makes {makes}", param="model")
        frames = messages.frames_of(messages.Submit.of(request))
        # Not before it could be written: a stream without a request would never end.
        stream = self._streams.open(request)
        self.slumber.used_s = time.monotonic()
        if waits:
            self.slumber.delay(request.request_id, frames)
            self._housekeeper.want(self)
        else:
            self._send_frames(frames)
        return stream

    def _abort(self, request_id: str, index: int | None) -> None:
        abort = messages.Abort(request_id, index)
        frames = None if index is None else messages.frames_of(abort)
        if not self.slumber.queue.abort(request_id, frames):
            self._send(abort)

    def _refuse_late(self, request_id: str) -> None:
        self._streams.fail(request_id, self.not_woken())

    def not_woken(self) -> ModelNotReady:
        """The error for those who waited in vain for the model to wake."""
        return self.slumber.not_woken(self._status)

    def let_go(self) -> None:
        """Send the requests that were held back."""
        self.slumber.holds_back = False
        for frames in self.slumber.queue.take():
            self._send_frames(frames)

    def fall_asleep(self, *, deep: bool = False) -> "asyncio.Task[None]":
        """Put a model without work to sleep. Requests wait from now on; a wake begins once this is
        done.

        Args:
            deep: whether to end the worker of a model that could doze.
        """
        if self._falling_asleep is None:
            self.slumber.begin()
            self._set_phase(Phase.SLEEPING)
            self._falling_asleep = self._sleep_task(deep)
        elif deep and self.slumber.is_dozing:
            self._falling_asleep = self._sleep_task(deep)
        return self._falling_asleep

    def _sleep_task(self, deep: bool) -> "asyncio.Task[None]":
        if deep:  # from now on, so that no wake comes between
            self.slumber.is_dozing = False
        return asyncio.create_task(self._fall_asleep(deep), context=Context())

    def wake(self) -> None:
        """Wake a sleeping model."""
        self._settled = asyncio.Event()
        if self.slumber.is_dozing and not self._desk.resume():
            self._falling_asleep = self._sleep_task(True)
            return
        self._falling_asleep = None
        self._has_served = False
        self.slumber.stir()
        self._set_phase(Phase.STARTING)
        if self.slumber.is_dozing:
            self.slumber.is_dozing = False
            self._was_dozing = True
            self._send(messages.WakeUp())
        else:
            self._over = asyncio.Event()
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
        late = partial(self._streams.end_adapter, name, self._unloaded(f"adapter {name!r}"))
        return self.adapter_changes.unload(name, drain_timeout_s, late)

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

    def reset_prefix_cache(self) -> None:
        """Empty the worker's prefix cache, before it begins with any later request."""
        if self._is_loaded:
            self._send(messages.ResetPrefixCache())

    def profile(self, *, on: bool) -> None:
        """Start to profile the worker's steps, or stop."""
        if self._is_loaded:
            self._send(messages.Profile(on))

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
        self._end_waiting(self._unloaded(f"model {self.spec.name!r}"))

    async def unload(self, drain_timeout_s: float) -> None:
        """After `leave`: let running requests finish within the timeout, then end them and the
        worker.

        Requests that do not finish end with `ModelUnloading`.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_timeout_s):
                await self.wait_until_idle()
        self._streams.fail_all(self._unloaded(f"model {self.spec.name!r}"))
        await self.stop()

    @staticmethod
    def _unloaded(what: str) -> ModelUnloading:
        return ModelUnloading(
            f"{what} was unloaded before the request was complete; send it to another model"
        )

    def _end_waiting(self, error: EngineError) -> None:
        """End the requests that wait for the model to wake."""
        for request_id in self.slumber.queue.clear():
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

    async def _fall_asleep(self, deep: bool) -> None:
        if deep or not await self._doze():
            await self._end_worker()
        self._settled.set()
        log.info("model sleeps", model=self.spec.name, dozing=self.slumber.is_dozing)
        if self.slumber.is_wanted:
            self._housekeeper.want(self)

    async def _doze(self) -> bool:
        """Have the worker put its memory into a file and stay. False: it cannot."""
        most_bytes = self._housekeeper.doze_bytes
        held = self._desk.held()
        if not (most_bytes > 0 and self._is_loaded and held == {"cpu": held.get("cpu")}):
            return False
        self._dozed = asyncio.get_running_loop().create_future()
        self._send(messages.Doze(str(self._options.cache_dir), most_bytes))
        answer = await self._dozed
        if answer is None or self._is_leaving:
            return False
        if not 0 < answer.file_bytes <= self._housekeeper.doze_bytes:  # another may have been first
            return False
        self.slumber.is_dozing = self._desk.suspend(answer.process_bytes)
        self.slumber.file_bytes = answer.file_bytes
        return self.slumber.is_dozing

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
            if self._was_dozing:  # it could not wake; another one loads the model
                self._was_dozing = False
                continue
            if self._status.phase is Phase.SLEEPING:
                return
            is_awaited = self._on_demand or self.slumber.is_asleep
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
            describe = partial(options.spec_for, self.spec, self.config)
            variables = options.variables_for(self.config)
            try:
                await worker.start(options.command, variables, options.stderr, describe)
            except OSError as error:  # for example, the system has too many processes
                self._failure = self._no_process(error)
                return
            watching = asyncio.create_task(self._watch(worker))
            try:
                async with contextlib.aclosing(worker.received()) as received:
                    async for message in received:
                        self._receive(message)
            finally:
                watching.cancel()
        finally:
            self._note_end(await worker.end())

    async def _watch(self, worker: WorkerProcess) -> None:
        """End a worker that hangs; `_run_worker` notices its end."""
        watchdog = Watchdog(self.config.worker_timeout_s, self.config.step_timeout_s)
        self._stall = await watchdog.watch(worker.pulse, lambda: (self._is_loaded, self._is_busy))
        self._stalls += 1
        log.error("a worker hangs and is restarted", model=self.spec.name, reason=self._stall)
        self._set_phase(Phase.RESTARTING, "the worker hung and is being restarted")
        await worker.kill_with_last_words()

    def _receive(self, message: messages.FromWorker) -> None:
        match message:
            case messages.Step():
                events, stats = message.read()
                self.stats = stats
                self.slumber.used_s = time.monotonic()
                self._streams.deliver(events)
                self._on_stats(self.spec.name, stats)
            case messages.Progress(phase=phase, progress=progress, detail=detail, kind=kind):
                self._kind = kind or self._kind
                self._set_phase(phase, detail, progress=progress)
            case messages.Reserve():
                self._desk.reserve(message, may_wait=not self._is_loaded)
            case messages.Release(id=id):
                self._desk.release(id)
            case messages.Found(path=path):
                self.text_path = path
                self._gate.found(path)
            case messages.Ready():
                self._gate.loaded(message.read())
            case messages.Dozing():
                if self._dozed is not None and not self._dozed.done():
                    self._dozed.set_result(message)
            case messages.Awake():
                assert self.info is not None
                self._was_dozing = False
                self._serve_requests(self.info)
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
        self.slumber.end(self._desk.held())
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
        is_asleep = self.slumber.is_asleep
        self._set_phase(Phase.SLEEPING if is_asleep else Phase.FAILED, failure=failure)
        self._settled.set()
        if is_asleep:
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

    def _no_process(self, error: OSError) -> Failure:
        log.error("a worker cannot be started", model=self.spec.name, error=str(error))
        return Failure(
            EngineDead.code,
            f"the worker process of model {self.spec.name!r} cannot be started: {error}; free "
            f"memory or processes, or raise their limits (ulimit -u), and load the model again",
        )

    async def _make_room(self, device: str, num_bytes: int) -> bool | None:
        """Have others sleep until a loading worker can get the rest of its memory, or that many
        bytes; else this model sleeps."""
        planned = self.slumber.planned.get(device, 0) - self._desk.held().get(device, 0)
        fits = await self._housekeeper.make_room(self, device, max(num_bytes, planned))
        if fits is not None or (self.info is None and self._on_demand):
            return bool(fits)
        self.fall_asleep()
        return None

    def _send(self, message: messages.ToWorker) -> None:
        self._send_frames(messages.frames_of(message))

    def _send_frames(self, frames: list[bytes]) -> None:
        if self._worker is not None:
            self._worker.send_frames(frames)

    def _note_end(self, code: int | None) -> None:
        """Log how a worker ended, if its end was unexpected. One that still loads is killed when
        it is not wanted any more."""
        if not code or (self._over.is_set() and not self._is_loaded):
            return
        cause = self._exit_cause = cause_of_end(code)
        if self._failure is not None:
            cause = self._failure.message
        if self._failure is None or self.info is not None:  # otherwise the status says it
            log.error("worker ended", model=self.spec.name, cause=cause)

    def _lose_worker(self) -> None:
        """Clean up after a worker's end, which also ended its requests and freed its memory."""
        self._worker = None
        self._is_loaded = False
        self.stats = None  # the next worker reports no step before it has a request
        self._gate.close()
        self._desk.release_all()
        self.slumber.is_dozing = False
        if self._dozed is not None and not self._dozed.done():
            self._dozed.set_result(None)
        self._set_phase(Phase.RESTARTING)
        reason = f": {self._failure.message}" if self._failure else ""
        if self._stall is not None:
            reason = f": {self._stall}"
        death = EngineDead(f"the worker of model {self.spec.name!r} ended{reason}; try again")
        self._streams.fail_all(death, but=self.slumber.queue)
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
        if self._status.phase is Phase.SLEEPING and phase is Phase.RESTARTING:
            return  # or dozes
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
