"""One model's text engine: schedule → launch → collect → commit, once per step.

The worker's loop (`engine.worker.loop`) owns it, and only that thread uses it. With asynchronous
scheduling, the next step is decided and launched before this one is collected, so that the device
is never idle:

    host    launch 1, launch 2 │ collect 1, commit 1, publish, launch 3 │ collect 2, …
    device                 step 1           │              step 2            │ step 3
"""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

from engine.contract.adapter_orders import AdapterOrder, Answer, NoAdapters, ServedAdapters
from engine.contract.generate import EngineStats, GenerateRequest, KvTransferCounts, TokenEvent
from engine.contract.rejection import rejection
from engine.contract.resolved_config import ResolvedConfig
from engine.errors import InvalidParameter
from engine.llm.cache.cache_journal import CacheJournal
from engine.llm.decision import ScheduleDecision
from engine.llm.executor import Executor, LaunchedStep
from engine.llm.kv_store.kv_store import KvStore
from engine.llm.kv_store.restoring import Restoring
from engine.llm.kv_transfer.transfer import KvTransfer
from engine.llm.runner.preparation import Preparation
from engine.llm.scheduler import Scheduler
from engine.runtime.fault import answer_for
from engine.turns.adapter_queue import AdapterQueue

NAP_S = 0.005
"""How long to wait for a grammar or an adapter when there is nothing else to do. Messages wait as
long, too."""
_NO_TRANSFER = KvTransferCounts()


class LLMEngine:
    """Turns queued requests into token events.

    Args:
        adapters: the executor's adapters, which may come and go; None if it never has any.
        store: keeps copies of blocks on a disk; the scheduler's, too.
        transfer: exchanges blocks with other workers; the scheduler has its loans.
        clock: `time.perf_counter`, or a test's own; only the cutting of prompts depends on it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        config: ResolvedConfig,
        *,
        adapters: ServedAdapters | None = None,
        store: KvStore | None = None,
        transfer: KvTransfer | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._adapters = adapters or NoAdapters()
        self._without_adapter: AdapterQueue[GenerateRequest] = AdapterQueue(self._adapters)
        self._preparation = Preparation(executor)
        most_blocks = config.max_idle_cached_blocks
        self._transfer = transfer
        others = () if transfer is None else (transfer.borrower,)
        self._restoring = Restoring(store, others, lambda: scheduler.pool, most_blocks)
        self._clock = clock
        self.num_processes = config.tensor_parallel_size
        """See `engine.worker.stepping.SharedEngine`."""
        self._checks_invariants = config.debug_invariants
        self._max_launched = 2 if config.async_scheduling else 1
        self._launched: deque[tuple[ScheduleDecision, LaunchedStep, float]] = deque()
        """Launched steps with the time of their launch, the oldest first."""
        self._collected_s = 0.0
        """When the last step ended."""
        self._current: ScheduleDecision | None = None
        """The decision that is being carried out; None while a step is being decided."""

    def add(self, request: GenerateRequest) -> None:
        """Queue a request.

        Raises:
            RequestError, CapacityError: it cannot be taken; nothing was changed. Problems with its
                structure or adapter that show later are reported by an event.
        """
        name = request.request_id
        if any(name in held for held in self._held):
            raise InvalidParameter(
                "a request with this request_id is running already", param="request_id"
            )
        if request.adapter is not None:
            # The name may stand for another adapter before the request ends, also in caches.
            request = replace(request, adapter=self._adapters.key_of(request.adapter))
            self._adapters.check(request.adapter_names)
            if not self._adapters.take(request.adapter_names):
                self._scheduler.check(request)
                self._without_adapter.add(request)
                return
        self._begin(request)

    @property
    def _held(self) -> tuple[AdapterQueue[GenerateRequest], Restoring, Preparation]:
        """What holds requests that the scheduler does not know yet."""
        return self._without_adapter, self._restoring, self._preparation

    def identify(self, digest: str) -> None:
        """See `engine.worker.stepping.IdentifiedEngine`."""
        self._restoring.open(digest)
        if self._transfer is not None:
            self._transfer.open(digest)

    def _begin(self, request: GenerateRequest) -> None:
        """Queue a request whose adapter is in place, perhaps once its blocks are."""
        source = self._restoring.source_of(request)
        if source is not None:
            self._scheduler.check(request)
            if self._restoring.add(request, source):
                return
        self._begin_computing(request)

    def _begin_computing(self, request: GenerateRequest) -> None:
        structure = request.sampling.structure
        if structure is None:
            self._scheduler.add(request)
            return
        self._scheduler.check(request)
        self._preparation.add(request, structure)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """End a request, or one of its completions, and free its blocks now. Unknown ids are
        ignored; no event follows."""
        if index is None:
            for held in self._held:
                held.forget(request_id)
        self._scheduler.abort(request_id, index)
        self._put_in_order()

    def load_adapter(self, order: AdapterOrder, answer: Answer) -> None:
        """Begin to load an adapter beside the steps; `answer` is called once it is there."""
        self._adapters.load(order, answer)

    def unload_adapter(self, name: str, answer: Answer) -> None:
        """Take no more requests for an adapter. Once no request uses it, it is removed and `answer`
        is called."""
        self._adapters.unload(name, answer)

    def has_work(self) -> bool:
        return (
            self._scheduler.has_work()
            or bool(self._launched or self._preparation)
            or self._without_adapter.has_work()
            or self._restoring.has_work
        )

    def step(self) -> tuple[list[TokenEvent], EngineStats]:
        """Bring one step to its end and return its events.

        An error in the step ends only the request that caused it, with an event; the others get the
        same results as without it (`Scheduler.recover`).

        Raises:
            Exception: the device is poisoned, or a check of invariants failed. The engine must not
                be used again: its process ends, and the supervisor starts a new one and tells the
                clients.
        """
        self.tend_loans()
        refused = self._advance_adapters()
        refused += self._admit_restored()
        refused += self._admit_prepared()
        try:
            events, stats = self._step()
        except Exception as error:
            self._launched.clear()
            events, stats = self._scheduler.recover(error, self._current), self.stats()
        self._put_in_order()
        if self._checks_invariants:
            self._scheduler.check_invariants()
        return refused + events, stats

    def use_idle_time(self) -> bool:
        """See `engine.worker.stepping.PreparingEngine`."""
        return self._executor.use_idle_time()

    def tend_loans(self) -> float | None:
        """See `engine.worker.stepping.LendingEngine`."""
        return None if self._transfer is None else self._transfer.loans.tend()

    @property
    def cache_journal(self) -> CacheJournal | None:
        """See `engine.worker.stepping.JournalingEngine`."""
        return self._scheduler.pool.cache.journal

    def reset_prefix_cache(self) -> None:
        """See `engine.worker.stepping.CachingEngine`."""
        self._scheduler.pool.forget_cached()

    def _advance_adapters(self) -> list[TokenEvent]:
        """Put adapters in place that have been read, and remove those that nobody uses. Returns the
        last events of requests whose adapters cannot be loaded."""
        refused = self._without_adapter.advance(self._adapters_in_use, self._begin)
        if not (self._launched or self._preparation or self._scheduler.has_work()):
            self._adapters.wait(NAP_S)
        return [event for request, error in refused for event in rejection(request, error)]

    def _adapters_in_use(self) -> set[str]:
        """The keys of adapters that are in place and used by unfinished requests."""
        waiting = (*self._restoring.requests(), *self._preparation.requests())
        requests = (*self._scheduler.requests(), *waiting)
        return {request.adapter for request in requests if request.adapter is not None}

    def _admit_restored(self) -> list[TokenEvent]:
        """Queue requests whose blocks have been read. Returns the last events of those that are
        refused."""
        is_idle = not (self._launched or self._preparation or self._scheduler.has_work())
        refused: list[TokenEvent] = []
        for request in self._restoring.advance(is_idle=is_idle):
            try:
                self._begin_computing(request)
            except Exception as error:
                refused += rejection(request, answer_for(error, request.request_id))
        return refused

    def _admit_prepared(self) -> list[TokenEvent]:
        """Queue requests whose structure is ready. Returns the last events of those whose structure
        is refused."""
        if self._preparation and not (self._launched or self._scheduler.has_work()):
            self._preparation.wait(NAP_S)
        refused: list[TokenEvent] = []
        for request, prepared in self._preparation.take_ready():
            try:
                self._scheduler.add(request, prepared.result())
            except Exception as error:
                refused += rejection(request, answer_for(error, request.request_id))
        return refused

    def _step(self) -> tuple[list[TokenEvent], EngineStats]:
        schedule_time_s = self._launch_steps()
        if not self._launched:
            return [], self.stats()
        decision, step, launched_s = self._launched.popleft()
        self._current = decision
        output = step.collect()
        before_s, self._collected_s = self._collected_s, self._clock()
        self._scheduler.note_time(decision, self._collected_s - max(launched_s, before_s))
        started = perf_counter()
        events = self._scheduler.commit(decision, output)
        stats = replace(
            self._stats(),
            schedule_time_s=schedule_time_s + perf_counter() - started,
            prepare_time_s=output.prepare_time_s,
            forward_time_s=output.forward_time_s,
            sample_time_s=output.sample_time_s,
        )
        return events, stats

    def stats(self) -> EngineStats:
        """The statistics between two steps, without tokens and times."""
        return replace(self._stats(), step_tokens=0)

    def _stats(self) -> EngineStats:
        stats = self._scheduler.stats()
        return replace(
            stats,
            num_waiting=stats.num_waiting + len(self._without_adapter) + len(self._restoring),
            kv_store=self._restoring.counts(),
            kv_transfer=_NO_TRANSFER if self._transfer is None else self._transfer.counts(),
            kv_bytes_committed=self._executor.kv_bytes_committed,
        )

    def _launch_steps(self) -> float:
        """Give the executor as many steps as it may have at a time. Returns the time that the
        decisions took."""
        schedule_time_s = 0.0
        while len(self._launched) < self._max_launched:
            if self._launched and self._launched[-1][0].blocks_next:
                break
            started = perf_counter()
            self._current = None
            decision = self._scheduler.schedule()
            schedule_time_s += perf_counter() - started
            if not decision.has_work:
                break
            self._current = decision
            launched_s = self._clock()
            self._launched.append((decision, self._executor.launch(decision), launched_s))
        return schedule_time_s

    def _put_in_order(self) -> None:
        if self._scheduler.is_doubtful:
            self._launched.clear()
            self._scheduler.start_over()

    def shutdown(self) -> None:
        """Write blocks that are not in the store yet, and release the executor's resources."""
        self._restoring.close()
        if self._transfer is not None:
            self._transfer.close()
        self._executor.shutdown()
