"""The settings of a worker, whatever its model makes."""

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from engine.contract.gpus import is_device
from engine.contract.knob import check_bounds, knob
from engine.contract.profiler_config import ProfilerConfig
from engine.errors import InvalidParameter

Device = str
"""`auto`, `cpu`, `cuda` or `cuda:N` (`engine.contract.gpus`)."""
WantedKind = Literal["auto", "embedding", "reranker", "upscaler"]
DType = Literal["auto", "bfloat16", "float16", "float32"]
Policy = Literal["fcfs", "priority"]
CpuIsa = Literal[
    "auto",
    "native",
    "x86-64-v3",
    "x86-64-v3-vnni",
    "x86-64-v4",
    "x86-64-v4-vnni",
    "x86-64-v4-bf16",
    "x86-64-v4-amx",
    "armv8-a",
]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How a worker computes and queues, and when it counts as stuck."""

    device: Device = knob(
        "auto",
        "Where the model runs: auto uses an NVIDIA GPU if there is one; cuda:1 is the second GPU.",
        form="auto|cpu|cuda|cuda:N",
    )
    kind: WantedKind = knob(
        "auto",
        "What a model is served as. auto: what its checkpoint is made for. embedding: serve a "
        "text model for embeddings, from the state of the last token. reranker: serve a "
        "Qwen3-Reranker stored as a text model, which scores pairs of texts. upscaler: treat a "
        ".safetensors file as an upscaling network, whatever its weights are called.",
    )
    scheduling_policy: Policy = knob(
        "fcfs",
        "Order in which requests run, for models of every kind: fcfs (first come, first served), "
        "or by the requests' priority and then by arrival.",
    )
    max_num_queued: int = knob(1024, "Requests that may wait for a place in the batch.", ge=1)
    replicas: int = knob(
        1,
        "Number of workers that serve a model under one id, each with its own copy of the "
        "weights, its own KV cache and its share of the cores. A request goes to the one with "
        "most of its prompt cached, unless that one is too busy. With device cuda each has its "
        "own GPU; with cuda:N they share one.",
        ge=1,
        le=64,
    )
    num_threads: int | None = knob(
        None,
        "Maximum number of CPU threads of a worker. By default one per core that affinity and the "
        "container's quota allow, minus one for HTTP if there are more than two; replicas share "
        "them.",
        ge=1,
    )
    adaptive_threads: bool = knob(
        True,
        "On a CPU, use fewer threads while other processes keep the cores busy, because a thread "
        "that waits for a core holds up all the others.",
    )
    worker_timeout_s: float = knob(
        60.0,
        "Restart a worker after this many seconds without a heartbeat, or with its loop blocked "
        "while requests wait.",
        ge=0.1,
        le=86_400,
    )
    step_timeout_s: float = knob(
        1800.0,
        "Restart a worker that computes for this many seconds without progress on any request; "
        "must be longer than the longest step.",
        ge=0.1,
        le=604_800,
    )
    pinned: bool = knob(
        False,
        "Never put the model to sleep, neither to make room for another model nor because it "
        "is idle.",
    )
    sleep_idle_seconds: float = knob(
        -1.0,
        "Put a model to sleep after this many seconds without a request; a request wakes it. -1 "
        "means never.",
        ge=-1,
    )
    wake_timeout_s: float = knob(
        300.0,
        "Refuse a request if its sleeping model has not woken within this many seconds.",
        ge=0.1,
        le=86_400,
    )
    deterministic: bool = knob(
        False,
        "Give bit-identical answers whatever else runs, even where that is slower: images on a "
        "GPU or in bfloat16 are not batched, and text on a GPU uses slower matrix products. Image "
        "models keep a fixed number of threads.",
    )

    profiler_config: dict[str, Any] | None = knob(
        None,
        "Allow POST /start_profile and /stop_profile to write traces of the workers' steps; a "
        "JSON object with vLLM's fields: "
        '{"profiler": "torch", "torch_profiler_dir": "/folder", "max_iterations": 100}.',
        form="JSON",
        names_files=True,
    )

    @property
    def num_sharing(self) -> int:
        """How many replicas share a device's memory: all, unless each has a GPU of its own."""
        return 1 if self.device == "cuda" else self.replicas

    def with_share_of(self, num_cores: int) -> Self:
        """A copy in which the worker of one of several replicas has its share of the cores, unless
        the operator has set a number of threads."""
        if self.replicas == 1 or self.num_threads is not None:
            return self
        return replace(self, num_threads=max(1, num_cores // self.replicas))

    def __post_init__(self) -> None:
        if not is_device(self.device):
            raise InvalidParameter(
                f"device is {self.device!r}; it must be auto, cpu, cuda or cuda:N", param="device"
            )
        check_bounds(self)
        ProfilerConfig.read(self.profiler_config)
