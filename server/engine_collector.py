"""Metrics read from the engine client when Prometheus asks, not at every step."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.contract.generate import EngineStats
from engine.contract.kinds import kind_for
from engine.contract.operations import GENERATE
from engine.contract.request import Stats
from engine.contract.status import ModelStatus, Phase
from engine.version import __version__
from engine.worker.client import EngineClient, ReplicaState

_LIVE_PHASES = (Phase.READY, Phase.DRAINING)


class EngineCollector(Collector):
    """Gauges of each model's newest step report; a model that is not running reads as idle."""

    def __init__(self, engine: EngineClient) -> None:
        self._engine = engine

    def describe(self) -> Iterator[Metric]:
        """Names without numbers, so that registering does not read the engine."""
        return iter(_Gauges().all())

    def collect(self) -> Iterator[Metric]:
        gauges = _Gauges()
        for status in self._engine.statuses():
            is_live = status.phase in _LIVE_PHASES
            gauges.add(status, self._engine.stats(status.model) if is_live else None)
            for replica in self._engine.replicas(status.model):
                gauges.add_replica(status.model, replica)
        for info in self._engine.infos(GENERATE):
            if info.quality_kl is not None:
                gauges.quality_kl.add_metric([info.model], info.quality_kl)
        for memory in self._engine.memory():
            gauges.memory_budget.add_metric([memory.device], memory.budget_bytes)
            for model, num_bytes in memory.held_bytes.items():
                gauges.memory_held.add_metric([model, memory.device], num_bytes)
        return iter(gauges.all())


class _Gauges:
    """The gauges of one answer to Prometheus."""

    def __init__(self) -> None:
        self.running = _gauge("num_requests_running", "Sequences in the running batch.")
        self.waiting = _gauge(
            "num_requests_waiting", "Sequences waiting for a place in the running batch."
        )
        self.kv_usage = _gauge("kv_cache_usage_ratio", "Blocks held by requests over all blocks.")
        self.kv_waste = _gauge("kv_cache_waste_ratio", "Unused slots over slots in held blocks.")
        self.kv_committed = _gauge("kv_bytes_committed", "Memory that the KV pool has touched.")
        self.kv_lent = _gauge("kv_transfer_lent_blocks", "Blocks kept for other servers.")
        self.threads = _gauge("num_threads", "CPU threads that a model's steps use now.")
        self.budget = _gauge("step_token_budget", "Token budget of the last step.")
        self.predicted = _gauge("step_predicted_seconds", "Expected time of the last step.")
        self.measured = _gauge("step_measured_seconds", "Measured time of the last step.")
        self.quality_kl = _gauge(
            "model_quality_kl",
            "Measured KL divergence from the model's original, in nats, if it is known.",
        )
        self.ready = _gauge("model_ready", "1 while the model takes requests.")
        self.sleeping = _gauge(
            "model_sleeping", "1 while the model sleeps or wakes, and requests wait for it."
        )
        self.wakes = CounterMetricFamily(
            "tandem_model_wakes", "Times that the model has woken.", labels=["model_name"]
        )
        self.wake_time = CounterMetricFamily(
            "tandem_model_wake_seconds",
            "Time from the start of a wake until the model served.",
            labels=["model_name"],
        )
        self.restarts = CounterMetricFamily(
            "tandem_engine_restarts", "Worker processes restarted.", labels=["model_name"]
        )
        self.stalls = CounterMetricFamily(
            "tandem_engine_stalls",
            "Worker processes ended because they stopped responding.",
            labels=["model_name"],
        )
        self.memory_held = GaugeMetricFamily(
            "tandem_memory_held_bytes",
            "Memory that the model holds of the device's budget.",
            labels=["model_name", "device"],
        )
        self.memory_budget = GaugeMetricFamily(
            "tandem_memory_budget_bytes",
            "Memory of the device that models may hold together.",
            labels=["device"],
        )
        self.replica_ready = _replica_gauge("ready", "1 while the replica takes requests.")
        self.replica_requests = _replica_gauge(
            "num_requests", "Requests that were routed to the replica and have not ended."
        )
        self.replica_kv_usage = _replica_gauge(
            "kv_cache_usage_ratio", "Blocks held by the replica's requests over all its blocks."
        )
        self.build = GaugeMetricFamily("tandem_build_info", "Always 1.", labels=["version"])
        self.build.add_metric([__version__], 1)

    def all(self) -> list[Metric]:
        return list(vars(self).values())

    def add_replica(self, model: str, replica: ReplicaState) -> None:
        labels = [model, replica.name]
        self.replica_ready.add_metric(labels, replica.is_ready)
        self.replica_requests.add_metric(labels, replica.num_requests)
        if isinstance(replica.stats, EngineStats):
            usage = _ratio(replica.stats.kv_blocks_used, replica.stats.kv_blocks_total)
            self.replica_kv_usage.add_metric(labels, usage)

    def add(self, status: ModelStatus, stats: Stats | None) -> None:
        labels = [status.model]
        self.ready.add_metric(labels, status.phase is Phase.READY)
        self.sleeping.add_metric(labels, status.is_asleep)
        self.wakes.add_metric(labels, status.num_wakes)
        self.wake_time.add_metric(labels, status.wake_time_s)
        self.restarts.add_metric(labels, status.restarts)
        self.stalls.add_metric(labels, status.stalls)
        self.threads.add_metric(labels, 0 if stats is None else stats.num_threads)
        if status.kind not in (kind_for(GENERATE).name, None):  # see the metrics of that kind
            return
        text = GENERATE.stats_among(stats) or EngineStats()
        slots_used = text.kv_blocks_used * text.kv_block_size
        self.running.add_metric(labels, text.num_running)
        self.waiting.add_metric(labels, text.num_waiting)
        self.kv_usage.add_metric(labels, _ratio(text.kv_blocks_used, text.kv_blocks_total))
        self.kv_waste.add_metric(labels, _ratio(text.kv_slots_unused, slots_used))
        self.kv_committed.add_metric(labels, text.kv_bytes_committed)
        self.kv_lent.add_metric(labels, text.kv_transfer.num_blocks_lent)
        self.budget.add_metric(labels, text.step_token_budget)
        self.predicted.add_metric(labels, text.step_predicted_s)
        self.measured.add_metric(labels, text.step_measured_s)


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tandem_{name}", text, labels=["model_name"])


def _replica_gauge(name: str, text: str) -> GaugeMetricFamily:
    labels = ["model_name", "replica"]
    return GaugeMetricFamily(f"tandem_replica_{name}", text, labels=labels)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
