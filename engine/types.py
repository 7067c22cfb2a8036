"""The types of requests to an engine and of its answers.

Plain frozen dataclasses without torch and wire libraries, so that the scheduler's tests, the server
and the worker process share them. `engine.messages` wraps them for the process border.

`Request`, `Event`, `Stats` and `Info` are the parts that all kinds of model share (`engine.kinds`);
the types of text follow below, those of images are in `engine.image_types`.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Generic, Self, TypeVar

from engine.errors import Failure, UnsupportedFeature
from engine.sampling_params import SamplingParams as SamplingParams


class FinishReason(StrEnum):
    """Why a request ended, with OpenAI's word if there is one."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    """A repetition that `SamplingParams.repetition_detection` ends; vLLM's word."""
    ABORT = "abort"
    ERROR = "error"


class Phase(StrEnum):
    """The state of a served model."""

    STARTING = "starting"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    READY = "ready"
    DRAINING = "draining"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


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


StatsT = TypeVar("StatsT", bound=Stats)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(Request["TokenEvent"]):
    """A prompt to continue. Stop strings and text belong to the server, not to the engine."""

    prompt_token_ids: list[int]
    sampling: SamplingParams
    cache_salt: str | None = None
    """Requests share cached prefixes only with requests that have the same salt."""
    client: str = ""
    """The client, as far as the server can tell; clients take turns when structures are read."""

    @property
    def num_completions(self) -> int:
        return self.sampling.n


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability and the best alternatives at its position.

    `top_ids` and `top_logprobs` are sorted from the most to the least likely and need not contain
    the token itself. `rank` is 1 for the most likely token. `entropy` and `varentropy` are the mean
    and variance of -log p over all tokens at the position, in nats: how uncertain the model was.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]
    entropy: float = 0.0
    varentropy: float = 0.0


@dataclass(frozen=True, slots=True)
class Repetition:
    """A stretch of a text that repeats the same tokens."""

    pattern_size: int
    """The number of tokens after which it begins anew."""
    start: int
    """The number of generated tokens before it."""
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent(Event):
    """What one step did for one completion of a text."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    """One entry per token id, if asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One entry per prompt token, in the first event of completion 0; the first entry is None."""
    stop_token_id: int | None = None
    """The token of `stop_token_ids` that ended the text; None after end-of-sequence."""
    repetition: Repetition | None = None
    """The longest repetition so far, if the request looks for them."""
    num_cached_tokens: int = 0
    """The number of prompt tokens taken from the prefix cache."""


class DrafterName(StrEnum):
    """The names of what can guess tokens."""

    FORCED = "forced"
    LOOKUP = "lookup"
    MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """How many tokens a drafter has guessed, and how many rightly."""

    num_drafts: int = 0
    """The number of guesses of a sequence's next tokens."""
    num_draft_tokens: int = 0
    """The number of guessed tokens."""
    num_accepted_tokens: int = 0
    """The number of guessed tokens that were also drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats(Stats):
    """The statistics of a text engine; `num_running` and `num_waiting` count sequences."""

    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    """The number of blocks that requests hold; cached blocks that nobody holds are free."""
    kv_slots_unused: int = 0
    """The number of allocated but empty slots in held blocks; a shared block counts once."""
    kv_block_size: int = 0
    kv_bytes_committed: int = 0
    """The physical memory that the pool has touched."""
    prefix_cache_queries: int = 0
    """The number of prompt tokens looked up."""
    prefix_cache_hits: int = 0
    """The number of prompt tokens found."""
    num_preemptions: int = 0
    drafts: dict[str, DraftCounts] = field(default_factory=dict)
    """The counts of each drafter, by `DrafterName`."""
    step_tokens: int = 0
    """The number of tokens computed in this step."""
    step_token_budget: int = 0
    """The most tokens that the last decided step could have had."""
    step_predicted_s: float = 0.0
    """The expected duration of the last step; 0 if none was computed."""
    step_measured_s: float = 0.0
    """The measured duration of the last step."""
    schedule_time_s: float = 0.0
    prepare_time_s: float = 0.0
    forward_time_s: float = 0.0
    sample_time_s: float = 0.0

    @property
    def num_drafts(self) -> int:
        """The total of all drafters, like the next two."""
        return sum(counts.num_drafts for counts in self.drafts.values())

    @property
    def num_draft_tokens(self) -> int:
        return sum(counts.num_draft_tokens for counts in self.drafts.values())

    @property
    def num_accepted_tokens(self) -> int:
        return sum(counts.num_accepted_tokens for counts in self.drafts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(AdaptableInfo):
    """The info of a text model; its `path` holds tokenizer and chat template."""

    max_model_len: int
    vocab_size: int
    """The number of rows of the output layer."""
    num_kv_blocks: int
    kv_block_size: int
    eos_token_ids: tuple[int, ...] = ()
    default_sampling: dict[str, float] = field(default_factory=dict)
    """The sampler parameters of requests that give none (`engine.default_sampling`); parameters
    that are missing here are neutral."""
    quality_kl: float | None = None
    """The measured KL divergence from the original's distributions in nats, if known."""

    @property
    def log_fields(self) -> dict[str, object]:
        return {"max_model_len": self.max_model_len}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """Whether a model is ready and, if not, why; `GET /ready` shows it."""

    model: str
    phase: Phase
    progress: float | None = None
    """The progress within the phase from 0 to 1, if known."""
    detail: str | None = None
    """The current activity, as one sanitised line."""
    failure: Failure | None = None
    """The reason why the model could not be loaded. Its hint may name paths; it is for the operator
    and never shown to clients."""
    restarts: int = 0
    stalls: int = 0
    """The number of workers that were ended because they hung."""
    kind: str | None = None
    """The name of its kind in `engine.kinds`; None until the checkpoint has been found."""
    joining: bool = False
    """Whether it is being loaded while the server runs, so that the server's readiness does not
    depend on it."""

    @property
    def news(self) -> str | None:
        """One line for clients: the reason of the failure, or the current activity."""
        return self.detail if self.failure is None else self.failure.message
