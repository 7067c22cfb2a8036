"""What all requests, events, statistics and infos share (`engine.contract.operations`).

Plain frozen dataclasses without torch and wire libraries, so that the scheduler's tests, the server
and the worker process share them. `engine.worker.messages` wraps them for the process boundary.
"""

import time
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Generic, Self, TypeVar

from engine.contract.phase import Phase
from engine.errors import Failure, UnsupportedFeature


class FinishReason(StrEnum):
    """Why a request ended, with OpenAI's word if there is one."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    """A repetition that `SamplingParams.repetition_detection` ends; vLLM's word."""
    ABORT = "abort"
    ERROR = "error"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """What one step did for one completion of a request. The last event has a finish reason."""

    request_id: str
    index: int = 0
    """The number of the completion within its request."""
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    """The error, if the finish reason is `error`."""
    queue_time_s: float | None = None
    """The time from arrival to the first step; in the first event only."""
    phases: tuple[Phase, ...] = ()
    """What the request has been through in the engine since its last event that says so."""


EventT = TypeVar("EventT", bound=Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[EventT]):
    """A request to a model; it is answered by events of one type."""

    request_id: str
    model: str
    priority: int = 0
    """Lower values run first, under the priority policy only."""
    arrival_time_s: float = 0.0
    """The value of `time.time()` when the server accepted the request."""
    adapter: str | None = None
    """The name of the LoRA adapter to use."""
    phases: tuple[Phase, ...] = ()
    """What it has waited for in the engine."""

    def after(self, name: str, start_s: float) -> Self:
        """The request after a wait that has just ended."""
        waited = Phase(name, start_s, max(0.0, time.time() - start_s))
        return replace(self, phases=(*self.phases, waited))

    @property
    def num_input_tokens(self) -> int:
        """The number of tokens that a model reads for it."""
        return 0

    @property
    def variant(self) -> str:
        """Which of its operation's requests this is, where there are several."""
        return ""

    @property
    def num_completions(self) -> int:
        """The number of completions, each of which ends with an event."""
        return 1

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """The adapters that the request needs."""
        return () if self.adapter is None else (self.adapter,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """An engine's statistics, published with each step's events. Counters are totals since the
    worker started."""

    num_running: int = 0
    num_waiting: int = 0
    num_steps: int = 0
    publish_time_s: float = 0.0
    """The time of publishing the previous step, as this one's is not over yet."""
    throttle_time_s: float = 0.0
    """The time slept to leave the device to other models (`image_share`)."""
    num_threads: int = 0
    """The number of CPU threads that steps use now (`adaptive_threads`)."""

    @property
    def is_busy(self) -> bool:
        """Whether the engine has requests."""
        return any(part.num_running + part.num_waiting > 0 for part in (self, *self.parts))

    @property
    def parts(self) -> "tuple[Stats, ...]":
        """The statistics of the model's further operations."""
        return ()


StatsT = TypeVar("StatsT", bound=Stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStats(Stats):
    """The statistics of an engine whose requests take turns (`engine.turns`)."""

    step_time_s: float = 0.0
    """The duration of the newest step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What the server must know about a loaded model. The worker sends it once it can serve."""

    model: str
    path: str
    """The local folder or file of the checkpoint. Never shown to clients."""
    architecture: str
    dtype: str
    created: int
    """The Unix time at which the model became ready."""
    config_hash: str = ""
    """A short hash of the resolved configuration; part of `system_fingerprint`."""
    digest: str = ""
    """The SHA-256 of the checkpoint's files (`engine.weights.digest`)."""
    file_format: str = ""
    """The format of the weight files, such as gguf or safetensors."""
    file_bytes: int = 0
    """The size of all files that the digest covers."""
    num_weights: int = 0
    """The number of weights in all matrices; 0 if unknown."""
    weight_type: str = ""
    """The type of most weights in the files, such as Q8_0 or BF16."""
    vocab_size: int | None = None
    """The number of valid token ids; larger ids are refused. None: requests carry no token ids."""

    @property
    def parts(self) -> "tuple[Info, ...]":
        """The infos of the model's further operations."""
        return ()

    @property
    def name(self) -> str:
        """The name by which a request asked for the model."""
        return self.model

    @property
    def names(self) -> list[str]:
        """All names by which requests can ask for the model."""
        return [self.model]

    def named(self, name: str) -> Self | None:
        """The info that answers a request for `name`; None if the model has no such name."""
        return self if name == self.model else None

    @property
    def all_digests(self) -> tuple[str, ...]:
        """The digests of all files that answers under this name depend on."""
        return (self.digest,)

    def with_adapter(self, name: str, digest: str = "") -> Self:
        """A copy with one more adapter, or with another version of one.

        Raises:
            UnsupportedFeature: this kind of model has no adapters.
        """
        raise UnsupportedFeature(f"{self.model} takes no LoRA adapters; text and image models do")

    def without_adapter(self, name: str) -> Self:
        """A copy without an adapter."""
        return self

    @property
    def log_fields(self) -> dict[str, object]:
        """What the log says about a model that begins to serve."""
        return {"family": self.architecture}


InfoT = TypeVar("InfoT", bound=Info)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptableInfo(Info):
    """The info of a model that may have LoRA adapters."""

    adapters: tuple[str, ...] = ()
    """The model's adapters; requests use their names as models."""
    failed_adapters: dict[str, str] = field(default_factory=dict)
    """The adapters that could not be loaded, with the reasons."""
    adapter_digests: dict[str, str] = field(default_factory=dict)
    """The SHA-256 of each adapter's files."""
    adapter: str | None = None
    """The adapter that the answered request asked for."""

    @property
    def name(self) -> str:
        return self.adapter or self.model

    @property
    def names(self) -> list[str]:
        return [self.model, *self.adapters]

    def named(self, name: str) -> Self | None:
        if name == self.model:
            return self
        return replace(self, adapter=name) if name in self.adapters else None

    @property
    def all_digests(self) -> tuple[str, ...]:
        if self.adapter is None:
            return (self.digest,)
        return self.digest, self.adapter_digests.get(self.adapter, "")

    def with_adapter(self, name: str, digest: str = "") -> Self:
        others = self.without_adapter(name)
        return replace(
            others,
            adapters=(*others.adapters, name),
            adapter_digests={**others.adapter_digests, name: digest},
        )

    def without_adapter(self, name: str) -> Self:
        kept = tuple(adapter for adapter in self.adapters if adapter != name)
        failed = {key: why for key, why in self.failed_adapters.items() if key != name}
        digests = {key: one for key, one in self.adapter_digests.items() if key != name}
        return replace(self, adapters=kept, failed_adapters=failed, adapter_digests=digests)
