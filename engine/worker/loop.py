"""A worker process: loads one model, then drains its inbox, steps the engine, publishes events.

`engine.worker.supervisor` starts it as the module `engine.worker.loop`. It ends on request, when
the server goes away (its standard input closes), or when something fails; the supervisor then
decides what to do.
"""

import faulthandler
import gc
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import structlog
import zmq

from engine.contract.adapter_orders import AdaptableEngine, AdapterReport
from engine.contract.host import Grant
from engine.contract.kinds import imported, kind_of
from engine.contract.kv_events_config import KvEventsConfig
from engine.contract.profiler_config import ProfilerConfig
from engine.contract.rejection import rejection
from engine.contract.request import AdaptableInfo, Event, Info, Request, Stats
from engine.contract.settings import EngineConfig
from engine.contract.status import Phase
from engine.errors import (
    EngineError,
    Failure,
    InternalError,
    UnsupportedFeature,
)
from engine.planning.process_bytes import PROCESSES, SMALLEST, ProcessBytes
from engine.processes.logs import configure_logging
from engine.processes.pulse import Pulse, send_pulses
from engine.runtime.fault import answer_for
from engine.runtime.memory import PROCESS, available_host_memory, private_bytes
from engine.runtime.side_work import SIDE_WORK
from engine.runtime.threads import (
    ComputeThreads,
    compute_threads,
    leave_a_core,
    prepare_process,
)
from engine.weights.recognition import kind_of_checkpoint, with_fetched
from engine.worker import messages
from engine.worker.profiling import StepProfiler
from engine.worker.socket_folder import remove_socket
from engine.worker.stepping import (
    AnyEngine,
    CachingEngine,
    IdentifiedEngine,
    JournalingEngine,
    LendingEngine,
    PreparingEngine,
    SharedEngine,
)

if TYPE_CHECKING:
    from engine.worker.kv_events import KvEventPublisher

_LONGEST_NAP_S = 0.5
_IDLE_S = 0.5
"""The time without messages before the engine may prepare: longer than between two requests of a
client."""

log = structlog.get_logger(__name__)


class Link:
    """The worker's end of the socket. Used by one thread."""

    def __init__(self, address: str) -> None:
        self._ids = count()
        self._early: deque[messages.ToWorker] = deque()
        """Messages that arrived while an answer was awaited and are still to be received."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.set_hwm(0)
        self._socket.linger = 1000
        self._socket.connect(address)

    def send(self, message: messages.FromWorker) -> None:
        self._socket.send_multipart(messages.frames_of(message), copy=False)

    def receive(self) -> messages.ToWorker:
        """Wait for the next message."""
        return self._early.popleft() if self._early else self._next()

    def _next(self) -> messages.ToWorker:
        return messages.decode_to_worker(*self._socket.recv_multipart())

    def wait_for(self, order: type[messages.WakeUp]) -> bool:
        """Wait for that order; other messages keep their order. False: shut down."""
        while not isinstance(message := self._next(), order):
            if isinstance(message, messages.Shutdown):
                return False
            self._early.append(message)
        return True

    def refuse(self, request_id: str, error: EngineError) -> None:
        """End a request with an error."""
        self.send(messages.Refused(request_id, Failure.of(error)))

    def has_message(self, wait_s: float = 0.0) -> bool:
        """Whether there is a message, after waiting up to `wait_s` for one."""
        if self._early:
            return True
        return self._socket.poll(timeout=round(1000 * wait_s), flags=zmq.POLLIN) != 0

    def close(self) -> None:
        """Deliver the sent messages, for at most a second, and close."""
        self._socket.close()
        self._context.term()

    def report(
        self,
        phase: Phase,
        progress: float | None = None,
        detail: str | None = None,
        kind: str | None = None,
    ) -> None:
        """Tell the server what the worker is doing and, once known, which kind its model is."""
        self.send(messages.Progress(phase, progress, detail, kind))

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        """Ask the arbiter for memory to keep; returns the device's free bytes after it.

        Raises:
            InsufficientMemory: it was refused; the message says who holds the memory.
        """
        return self.borrow(device, purpose, num_bytes, capacity_bytes).free_bytes

    def borrow(
        self,
        device: str,
        purpose: str,
        num_bytes: int,
        capacity_bytes: int,
        shared_bytes: int = 0,
    ) -> Grant:
        """Ask the arbiter for memory, also while serving; other messages keep their order.

        Args:
            shared_bytes: what is taken in addition and shared with all other workers.

        Raises:
            InsufficientMemory: as in `reserve`.
        """
        id = next(self._ids)
        self.send(messages.Reserve(id, device, purpose, num_bytes, capacity_bytes, shared_bytes))
        while True:
            match answer := self._next():
                case messages.Granted(id=answered, free_bytes=free_bytes) if answered == id:
                    return Grant(id, free_bytes)
                case messages.Denied(id=answered, failure=failure) if answered == id:
                    raise failure.error()
            self._early.append(answer)

    def give_back(self, grant: Grant) -> None:
        """Return borrowed memory."""
        self.send(messages.Release(grant.id))


class Loop:
    """Steps the engine while there is work, and otherwise sleeps on the socket.

    A throttled loop sleeps after each step and listens for messages meanwhile.
    """

    def __init__(
        self,
        engine: AnyEngine,
        link: Link,
        threads: ComputeThreads,
        pulse: Pulse | None = None,
        kv_events: "KvEventPublisher | None" = None,
        profiler: StepProfiler | None = None,
    ) -> None:
        self._engine = engine
        self._kv_events = kv_events
        self._profiler = profiler
        self._can_prepare = isinstance(engine, PreparingEngine)
        self._link = link
        self._pulse = pulse or Pulse()
        self._threads = threads
        self._num_steps = 0
        self._publish_time_s = 0.0
        self._share: float | None = None
        self._throttle_time_s = 0.0
        self._resume_s = 0.0

    def run(self) -> None:
        """Serve until the order to shut down."""
        while self._drain_inbox():
            self._pulse.num_turns += 1
            if self._engine.has_work() and not self._yielding():
                started_s = time.monotonic()
                events, stats = self._step()
                self._pulse.num_outcomes += bool(events) or stats.num_steps != self._num_steps
                self._num_steps = stats.num_steps
                self._publish(events, stats)
                if self._profiler is not None:
                    self._profiler.note_step()
                self._plan_pause(started_s)

    def _step(self) -> tuple[list[Event], Stats]:
        self._threads.before_step()
        step: Callable[[], tuple[list[Event], Stats]] = self._engine.step
        result = step() if self._profiler is None else self._profiler.run(step)
        self._threads.after_step()
        return result

    def _plan_pause(self, started_s: float) -> None:
        if self._share is not None and self._share < 1.0:
            now_s = time.monotonic()
            self._resume_s = now_s + (now_s - started_s) * (1.0 - self._share) / self._share

    def _yielding(self) -> bool:
        """Sleep through the pause unless a message comes; returns whether some of the pause is
        left."""
        left_s = self._resume_s - time.monotonic()
        if self._share is None or left_s <= 0:
            return False
        started_s = time.monotonic()
        # At least a millisecond, the poll's resolution, and not so long that the loop looks dead.
        wait_s = min(max(left_s, 0.001), _LONGEST_NAP_S)
        interrupted = self._link.has_message(wait_s)
        self._throttle_time_s += time.monotonic() - started_s
        self._pulse.num_outcomes += 1
        return interrupted or wait_s < left_s

    def _drain_inbox(self) -> bool:
        """Handle messages that have arrived; waits if there is no work. False: shut down."""
        while self._link.has_message() or not self._engine.has_work():
            self._prepare_until_message()
            self._tend_loans_until_message()
            match self._link.receive():
                case messages.Submit() as submit:
                    self._submit(submit)
                case messages.Throttle(share=share):
                    self._share = share
                case messages.Abort(request_id=request_id, index=index):
                    self._engine.abort(request_id, index)
                    if not self._engine.has_work():
                        self._publish([], self._engine.stats())
                case messages.LoadAdapter() | messages.UnloadAdapter() as change:
                    self._change_adapter(change)
                case messages.ResetPrefixCache():
                    if isinstance(self._engine, CachingEngine):
                        self._engine.reset_prefix_cache()
                        self._publish([], self._engine.stats())
                case messages.Profile(on=on):
                    if self._profiler is not None:
                        self._profiler.switch(on=on)
                case messages.Doze() as order:
                    if not self._doze(order):
                        return False
                case messages.Shutdown():
                    return False
        return True

    def _doze(self, order: messages.Doze) -> bool:
        """Keep the model's memory in a file until it is wanted. False: shut down."""
        from engine.runtime.parked_memory import ParkedMemory

        try:
            if self._engine.has_work() or SIDE_WORK.num_running:
                raise OSError("it still works on a request that was cancelled")
            if self._tend_loans() is not None:
                raise OSError("it keeps KV blocks for another server")
            if isinstance(self._engine, SharedEngine) and self._engine.num_processes > 1:
                raise OSError("other processes hold a part of it")
            parked = ParkedMemory(Path(order.folder), order.most_bytes)
        except OSError as error:
            log.info("the model cannot doze", reason=str(error))
            self._link.send(messages.Dozing())
            return True
        self._link.send(messages.Dozing(parked.num_bytes, private_bytes()))
        if not self._link.wait_for(messages.WakeUp):
            return False
        parked.restore()
        self._link.send(messages.Awake())
        return True

    def _prepare_until_message(self) -> None:
        """Let an idle engine prepare for requests that may come."""
        wait_s = _IDLE_S
        while self._can_prepare and not self._link.has_message(wait_s):
            self._can_prepare = cast(PreparingEngine, self._engine).use_idle_time()
            wait_s = 0.0

    def _tend_loans_until_message(self) -> None:
        """Have an idle engine release in time what it keeps for others."""
        wait_s = self._tend_loans()
        if wait_s is None:
            return
        while wait_s is not None and not self._link.has_message(wait_s):
            wait_s = self._tend_loans()
        self._publish([], self._engine.stats())

    def _tend_loans(self) -> float | None:
        engine = self._engine
        return engine.tend_loans() if isinstance(engine, LendingEngine) else None

    def _change_adapter(self, change: messages.LoadAdapter | messages.UnloadAdapter) -> None:
        """Pass on an order. It is answered when it has been carried out, between two steps."""

        def answer(outcome: AdapterReport | EngineError | None) -> None:
            failure = Failure.of(outcome) if isinstance(outcome, EngineError) else None
            report = outcome if isinstance(outcome, AdapterReport) else None
            self._link.send(messages.AdapterChanged(change.id, report, failure))

        engine = self._engine
        if not isinstance(engine, AdaptableEngine):
            answer(
                UnsupportedFeature(
                    "this kind of model takes no LoRA adapters; text and image models do"
                )
            )
        elif isinstance(change, messages.LoadAdapter):
            engine.load_adapter(change.order, answer)
        else:
            engine.unload_adapter(change.name, answer)

    def _submit(self, submit: messages.Submit) -> None:
        """Take in a request. One that cannot be read is refused."""
        try:
            request = submit.read()
        except Exception as error:
            request_id = submit.request_id()
            if request_id is None:
                raise
            self._link.refuse(request_id, answer_for(error, request_id))
        else:
            self._add(request)

    def _add(self, request: Request[Any]) -> None:
        try:
            self._engine.add(request)
        except Exception as error:
            answer = answer_for(error, request.request_id)
            self._publish(rejection(request, answer), self._engine.stats())

    def _publish(self, events: Sequence[Event], stats: Stats) -> None:
        start_s = time.perf_counter()
        # First, so that whoever has an answer can ask what was cached for it.
        if self._kv_events is not None:
            self._kv_events.publish()
        for alike in [[*alike] for _, alike in groupby(events, type)] or [[]]:
            try:
                self._link.send(self._report(alike, stats))
            except Exception:
                self._publish_apart(alike, stats)
        self._publish_time_s = time.perf_counter() - start_s

    def _report(self, events: Sequence[Event], stats: Stats) -> messages.Step:
        timed = replace(
            stats,
            publish_time_s=self._publish_time_s,
            throttle_time_s=self._throttle_time_s,
            num_threads=self._threads.num_threads,
        )
        return messages.Step.of(events, timed)

    def _publish_apart(self, events: Sequence[Event], stats: Stats) -> None:
        """Publish events one by one after one of them could not be written: only its request
        ends."""
        for event in events:
            try:
                self._link.send(self._report([event], stats))
            except Exception as error:
                self._engine.abort(event.request_id)
                self._link.refuse(event.request_id, answer_for(error, event.request_id))


def load(spec: messages.WorkerSpec, link: Link) -> tuple[AnyEngine, Info]:
    """Fetch and load the model, reporting each phase."""
    from engine.weights.adapter_source import resolve_adapter, with_adapters_here
    from engine.weights.digest import PendingDigest
    from engine.weights.source import resolve_source

    tell = partial(link.report, Phase.DOWNLOADING)
    cache_dir = Path(spec.cache_dir)
    fetch = partial(resolve_source, cache_dir=cache_dir, offline=spec.offline, on_progress=tell)
    fetch_adapter = partial(
        resolve_adapter, cache_dir=cache_dir, offline=spec.offline, on_progress=tell
    )
    checkpoint = fetch(spec.ref)
    # Importing torch takes a second and most of a process's memory, so the server is told
    # "starting" and asked for memory before that.
    least = PROCESSES[SMALLEST]
    process = None if spec.config.device.startswith("cuda") else reserve_process(link, least)
    from engine.runtime.device import choose_cpu_isa, choose_device, num_usable_cores
    from kernels.cache_folder import use_cache_folder

    use_cache_folder(Path(spec.cache_dir) / "kernels")
    kind = kind_of_checkpoint(checkpoint, spec.config.kind)
    choose_cpu_isa(spec.cpu_isa, spec.config.optimize_for if kind.has_text_side else "throughput")
    if process is not None and choose_device(spec.config.device) != "cpu":
        link.give_back(process)
        process = None
    if kind.has_text_side:
        link.send(messages.Found(str(checkpoint.path)))
    config, failed = with_adapters_here(spec.config, fetch_adapter)
    config = config.with_share_of(num_usable_cores())
    config = with_fetched(config, kind, fetch)
    link.report(Phase.LOADING, 0.0, kind=kind.name)
    if process is not None and (own := PROCESSES.get(kind.name, least)) is not least:
        reserve_process(link, own.beyond(least))
    digest = PendingDigest(checkpoint, cache_dir / "digests")
    engine: AnyEngine
    info: Info
    engine, info = imported(kind.loader)(checkpoint, spec.model, config.of(kind.settings), link)
    if not digest.is_done:
        link.report(Phase.WARMING_UP, None, "hashing the model's files")
    if isinstance(engine, IdentifiedEngine):
        engine.identify(digest.result())
    info = replace(
        info,
        digest=digest.result(),
        file_format=checkpoint.file_format,
        file_bytes=digest.num_bytes,
    )
    if failed and isinstance(info, AdaptableInfo):
        info = replace(info, failed_adapters={**info.failed_adapters, **failed})
    return engine, info


def reserve_process(link: Link, process: ProcessBytes) -> Grant:
    """Ask for the memory that a worker takes beside its model.

    Raises:
        InsufficientMemory: there is too little.
    """
    capacity = available_host_memory() + private_bytes()
    return link.borrow("cpu", PROCESS, process.own_bytes, capacity, process.library_bytes)


def serve(spec: messages.WorkerSpec) -> int:
    """Run a worker from start to end. Returns its exit code."""
    pulse = Pulse()
    send_pulses(pulse, spec.pulse_fd)
    link = Link(spec.address)
    try:
        link.report(Phase.STARTING)
        engine, info = load(spec, link)
        kv_events, profiler = _kv_events(spec, engine), _profiler(spec)
        link.send(messages.Ready.of(info))
        # Loaded objects stay: without this every full garbage collection would walk all of them.
        gc.collect()
        gc.freeze()
        gc.enable()
        Loop(engine, link, _threads(spec.config, info), pulse, kv_events, profiler).run()
        engine.shutdown()
        if kv_events is not None:
            kv_events.close()
    except EngineError as error:
        # Only logged for debugging, as the server logs this error itself.
        log.debug("worker failed", code=error.code, reason=error.message)
        link.send(messages.Failed(Failure.of(error)))
        return 1
    except Exception as error:
        log.exception("worker failed")
        reason = InternalError(
            f"an internal error ended the worker ({type(error).__name__}); see the server's log"
        )
        link.send(messages.Failed(Failure.of(reason)))
        return 1
    finally:
        link.close()
    return 0


def _kv_events(spec: messages.WorkerSpec, engine: AnyEngine) -> "KvEventPublisher | None":
    """What publishes the engine's cache events, if the operator wants them."""
    journal = engine.cache_journal if isinstance(engine, JournalingEngine) else None
    if journal is None:
        return None
    config = KvEventsConfig.read(spec.config.kv_events_config)
    assert config is not None
    from engine.worker.kv_events import KvEventPublisher

    return KvEventPublisher(journal, config, spec.rank)


def _profiler(spec: messages.WorkerSpec) -> StepProfiler | None:
    """What profiles steps, if the operator allows it."""
    config = ProfilerConfig.read(spec.config.profiler_config)
    return None if config is None else StepProfiler(config, f"{spec.model}-{os.getpid()}")


def _threads(config: EngineConfig, info: Info) -> ComputeThreads:
    """The compute threads for the loaded engine."""
    from engine.runtime.device import choose_device

    adaptive = config.adaptive_threads and choose_device(config.device) == "cpu"
    if kind_of(info).threads_change_bits and config.deterministic:
        adaptive = False
    return compute_threads(adaptive=adaptive)


def read_spec() -> messages.WorkerSpec:
    """Read the length-prefixed specification from standard input."""
    size = int.from_bytes(_read_exactly(4), "little")
    return messages.decode_worker_spec(_read_exactly(size))


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            raise InternalError("standard input ended before the worker had read what to load")
        data += piece
    return data


def end_with_the_server(address: str) -> None:
    """Exit at once when standard input closes: the server is gone and nobody waits for answers.

    Nothing stays behind, neither the socket's folder nor other processes of this process's group,
    such as a compiler. From now on the group is this process's own. A session of its own would work
    as well, but Linux shares the cores between sessions, and the server's threads would be in
    another one.
    """
    os.setpgid(0, 0)

    def watch() -> None:
        # Not through sys.stdin, as a thread that holds its lock would abort the interpreter's
        # shutdown.
        while os.read(0, 4096):
            pass
        remove_socket(address)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="watch-server", daemon=True).start()


def main() -> int:
    """Run a worker as a process of its own."""
    # Little of what a start makes is garbage, but looking for it took a fifth of an image worker's.
    gc.disable()
    faulthandler.enable()
    # The server sends this signal to learn where each thread is, before it ends a worker that
    # hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # A signal to the whole group is meant for the server, which drains and then ends its workers.
    for ignored in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    spec = read_spec()
    end_with_the_server(spec.address)
    configure_logging(spec.log_format, spec.log_level, fields={"model": spec.model})
    prepare_process()
    if spec.config.num_threads is None:
        leave_a_core()
    return serve(spec)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is sent and closed; a normal exit of the interpreter takes time and prints
    # complaints.
    os._exit(code)
