"""One model's replicas: their workers' names, what they are together, and who takes a request.

The first worker has the model's own id; the others are called `ID#2`, `ID#3` and so on. In the
client's table each is a model of its own, with its own supervisor, memory and sleep.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.contract.generate import ModelInfo, TokenEvent
from engine.contract.model_spec import ModelSpec
from engine.contract.request import Event, Info, Request
from engine.contract.settings import EngineConfig
from engine.contract.status import ModelStatus, Phase
from engine.errors import Failure
from engine.worker.replicas.job import Job, job_of
from engine.worker.replicas.router import Router, Running

_RANKS = (
    *(Phase.READY, Phase.WARMING_UP, Phase.LOADING, Phase.DOWNLOADING, Phase.STARTING),
    *(Phase.RESTARTING, Phase.SLEEPING, Phase.DRAINING, Phase.FAILED, Phase.STOPPED),
)
"""Of several workers, the one whose phase comes first here says what the model does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSpec(ModelSpec):
    """The spec of a worker that serves a model beside others."""

    of: str
    """The model's id."""
    number: int

    @property
    def served_as(self) -> str:
        return self.of

    @property
    def rank(self) -> int:
        return self.number


class ReplicaSet:
    """The workers of one model. Event loop only.

    Args:
        on_demand: the model is loaded while the server runs.

    Attributes:
        workers: the names of those in the client's table.
        config: the model's configuration.
        failure: why the model cannot be served with that many replicas.
        text_path: the path of its checkpoint, once all workers are gone.
    """

    def __init__(
        self, spec: ModelSpec, of_server: EngineConfig, *, on_demand: bool = False
    ) -> None:
        self.spec = spec
        self._on_demand = on_demand
        self.config = spec.config(of_server)
        self.workers: list[str] = []
        self.failure: Failure | None = None
        self.text_path: str | None = None
        self.is_leaving = False
        self.is_whole = self.config.replicas == 1
        """Whether all workers have served together."""
        self._router: Router | None = None
        self._shown: tuple[Info, Info] | None = None
        """A worker's info, and the same as the model's."""

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_complete(self) -> bool:
        """Whether all workers are in the table."""
        return len(self.workers) >= self.config.replicas

    @property
    def names(self) -> list[str]:
        """The names of all workers, those that are still to be started included."""
        others = (f"{self.name}#{number}" for number in range(2, self.config.replicas + 1))
        return [self.name, *others]

    def first(self) -> ModelSpec:
        """The spec of the first worker."""
        return self.spec if self.config.replicas == 1 else self._spec(0, {})

    def others(self, info: Info) -> list[ModelSpec]:
        """The specs of the workers after the first one, whose `info` they are to share: they hold
        as much, so that a request that one can take fits all."""
        settings: dict[str, Any] = {}
        if isinstance(info, ModelInfo):
            settings = {"num_kv_blocks": info.num_kv_blocks, "max_model_len": info.max_model_len}
        return [self._spec(number, settings) for number in range(1, self.config.replicas)]

    def _spec(self, number: int, settings: dict[str, Any]) -> ModelSpec:
        spec, device = self.spec, self.spec.device
        if self.config.num_sharing == 1:  # each has a GPU, and its CPU threads, to itself
            device, settings = f"cuda:{number}", settings | {"replicas": 1}
        return ReplicaSpec(
            of=self.name,
            number=number,
            ref=spec.ref,
            name=self.names[number],
            device=device,
            settings={**spec.settings, **settings},
        )

    def status(self, statuses: Sequence[ModelStatus]) -> ModelStatus:
        """What the model does, given what its workers do."""
        if self.failure is not None or not statuses:
            return ModelStatus(model=self.name, phase=Phase.FAILED, failure=self.failure)
        if self.config.replicas == 1:
            return statuses[0]
        shown = min(statuses, key=lambda one: (_RANKS.index(one.phase), one.waking))
        num_ready = sum(one.phase is Phase.READY for one in statuses)
        if num_ready and not self.is_whole:  # requests are taken, but it may still be refused
            shown = replace(shown, phase=Phase.LOADING, progress=None)
        if 0 < num_ready < self.config.replicas:
            news = f"{num_ready} of {self.config.replicas} replicas are ready"
            shown = replace(shown, detail=news)
        return replace(
            shown,
            model=self.name,
            restarts=sum(one.restarts for one in statuses),
            stalls=sum(one.stalls for one in statuses),
            num_wakes=sum(one.num_wakes for one in statuses),
            wake_time_s=sum(one.wake_time_s for one in statuses),
            idle_s=min(one.idle_s for one in statuses),
            pinned=all(one.pinned for one in statuses),
            joining=self._on_demand and not self.is_whole,
        )

    def config_as(self, of_worker: EngineConfig | None) -> EngineConfig:
        """A worker's configuration, with the adapters that it has now, as that of the model."""
        own = self.config
        if own.replicas == 1 or of_worker is None:
            return of_worker or own
        return replace(of_worker, device=own.device, replicas=own.replicas)

    def info(self, of_worker: Info) -> Info:
        """A worker's info as that of the model."""
        if of_worker.model == self.name:
            return of_worker
        if self._shown is None or self._shown[0] is not of_worker:
            self._shown = of_worker, replace(of_worker, model=self.name)
        return self._shown[1]

    def route(self, request: Request[Any], info: Info, among: Sequence[str]) -> "RoutedRequest":
        """Choose the worker that takes a request, of some that can."""
        router = self._the_router(info)
        job = job_of(request, info, self.config.max_adapter_slots)
        return RoutedRequest(router, job, router.choose(job, among))

    def lacks(self, ready: Sequence[str], num_waking: int) -> bool:
        """Whether another worker would help (`Router.lacks`)."""
        return self._router is not None and self._router.lacks(ready, num_waking)

    def num_running(self, worker: str) -> int:
        """The number of a worker's unfinished requests."""
        return 0 if self._router is None else self._router.num_running(worker)

    def lose(self, worker: str) -> None:
        """Note that a worker has lost its cache, perhaps because it has ended."""
        if self._router is not None:
            self._router.lose(worker)

    def _the_router(self, info: Info) -> Router:
        if self._router is None:
            most = info.max_idle_blocks if isinstance(info, ModelInfo) else 0
            slots = self.config.max_adapter_slots
            self._router = Router(self.names, max_idle=most, num_slots=slots)
        return self._router


class RoutedRequest:
    """A request that a worker was chosen for. Watches the request's stream, once it has one."""

    def __init__(self, router: Router, job: Job, worker: str) -> None:
        self.worker = worker
        self._router = router
        self._job = job
        self._running: Running | None = None

    def begin(self) -> None:
        """Note that the worker has got the request."""
        self._running = self._router.begin(self._job, self.worker)

    def note(self, event: Event) -> None:
        """Take in an event of the request."""
        running = self._running
        if running is None or running.has_begun:
            return
        cached = event.num_cached_tokens if isinstance(event, TokenEvent) else 0
        if event.failure is None:
            self._router.note_first_token(running, cached)

    def end(self) -> None:
        """Note that the request has ended."""
        if self._running is not None:
            self._router.end(self._running)
            self._running = None
