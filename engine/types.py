"""The engine's vocabulary: what a request asks for and what comes back.

Plain frozen dataclasses, free of torch and of wire libraries, so that the scheduler's tests, the
server and the worker process share them. `engine.messages` wraps them for the process border.

`Request`, `Event`, `Stats` and `Info` are what is alike in every kind of model (`engine.kinds`);
those of text follow below, those of images are in `engine.image_types`.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Generic, Self, TypeVar

from engine.errors import Failure, UnsupportedFeature
from engine.sampling_params import SamplingParams as SamplingParams


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words where OpenAI has one."""

    STOP = "stop"
    LENGTH = "length"
    REPETITION = "repetition"
    """As asked for by `SamplingParams.repetition_detection`; vLLM's word."""
    ABORT = "abort"
    ERROR = "error"


class Phase(StrEnum):
    """What a served model is doing."""

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
    """What one step brought one completion of a request. The last one has a finish reason."""

    request_id: str
    index: int = 0
    """Which of the request's completions."""
    finish_reason: FinishReason | None = None
    failure: Failure | None = None
    """With finish reason `error`."""
    queue_time_s: float | None = None
    """From arrival to the first step; in the first event only."""


EventT = TypeVar("EventT", bound=Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(Generic[EventT]):
    """What is asked of a model; answered by events of one type."""

    request_id: str
    model: str
    priority: int = 0
    """Lower runs first, under the priority policy only."""
    arrival_time_s: float = 0.0
    """`time.time()` when the server accepted it."""
    adapter: str | None = None
    """Name of the model's LoRA adapter that it asks for."""

    @property
    def num_completions(self) -> int:
        """Completions that will end with an event each."""
        return 1

    @property
    def adapter_names(self) -> tuple[str, ...]:
        """All adapters without which it cannot be answered."""
        return () if self.adapter is None else (self.adapter,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """An engine's statistics, published with each step's events. Counters are totals since the
    worker started."""

    num_running: int = 0
    num_waiting: int = 0
    num_steps: int = 0
    publish_time_s: float = 0.0
    """Publishing of the previous step, since this one's is not over yet."""
    throttle_time_s: float = 0.0
    """Slept to leave the device to other models (`image_share`)."""
    num_threads: int = 0
    """CPU threads that steps use now (`adaptive_threads`)."""


StatsT = TypeVar("StatsT", bound=Stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What the server must know of a loaded model. Made by the worker, sent once it can serve."""

    model: str
    path: str
    """Local folder or file of the checkpoint. Never shown to clients."""
    architecture: str
    dtype: str
    created: int
    """Unix time at which it became ready."""
    config_hash: str = ""
    """Short hash of the resolved configuration; part of `system_fingerprint`."""
    digest: str = ""
    """SHA-256 of the checkpoint's files (`engine.weights.digest`)."""
    file_format: str = ""
    """Of the files that hold the weights, such as gguf or safetensors."""
    file_bytes: int = 0
    """Of all files that the digest is of."""
    num_weights: int = 0
    """Numbers in all of its matrices; 0: not known."""
    weight_type: str = ""
    """That most of them have in the files, such as Q8_0 or BF16."""
    vocab_size: int | None = None
    """Token ids at or above it are refused. None: requests bring no token ids."""

    @property
    def name(self) -> str:
        """As a request asked for it."""
        return self.model

    @property
    def names(self) -> list[str]:
        """All that it can be asked for by."""
        return [self.model]

    def named(self, name: str) -> Self | None:
        """The info that a request for `name` is answered by; None: that is no name of it."""
        return self if name == self.model else None

    @property
    def all_digests(self) -> tuple[str, ...]:
        """Of whatever is read from files to answer a request for `name`."""
        return (self.digest,)

    def with_adapter(self, name: str, digest: str = "") -> Self:
        """The same with one more adapter, or with another version of one.

        Raises:
            UnsupportedFeature: its kind has none.
        """
        raise UnsupportedFeature(f"{self.model} takes no LoRA adapters; text and image models do")

    def without_adapter(self, name: str) -> Self:
        """The same without an adapter."""
        return self

    @property
    def log_fields(self) -> dict[str, object]:
        """What the log says of a model that begins to serve."""
        return {"family": self.architecture}


InfoT = TypeVar("InfoT", bound=Info)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptableInfo(Info):
    """Of a model that may have LoRA adapters."""

    adapters: tuple[str, ...] = ()
    """Those that it has, each asked for as a model of that name."""
    failed_adapters: dict[str, str] = field(default_factory=dict)
    """Those that it was to have, and why it has not."""
    adapter_digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the files of each adapter."""
    adapter: str | None = None
    """The one that a request asked for, in the info that the request is answered by."""

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
    """One prompt to continue. Stop strings and text are the server's business, not the engine's."""

    prompt_token_ids: list[int]
    sampling: SamplingParams
    cache_salt: str | None = None
    """Requests share cached prefixes only with requests of the same salt."""
    client: str = ""
    """Who asks, as far as the server can tell; clients take turns where structures are read."""

    @property
    def num_completions(self) -> int:
        return self.sampling.n


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability beside the best alternatives at its position.

    `top_ids` and `top_logprobs` are sorted from the most to the least likely and need not hold the
    token itself. `rank` is 1 for the most likely token. `entropy` and `varentropy` are mean and
    variance of -log p over all tokens at its position, in nats: how uncertain the model was.
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
    """A stretch of a text that says the same tokens over and over."""

    pattern_size: int
    """Tokens after which it begins anew."""
    start: int
    """Generated tokens before it."""
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent(Event):
    """What one step brought one completion of a text."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    """One per token id, when asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One per prompt token, in the first event of completion 0; the first prompt token has None."""
    stop_token_id: int | None = None
    """The token of `stop_token_ids` that ended it; None after end-of-sequence."""
    repetition: Repetition | None = None
    """The longest so far, where they are looked for."""
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""


class DrafterName(StrEnum):
    """Who guesses tokens."""

    FORCED = "forced"
    LOOKUP = "lookup"
    MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCounts:
    """What a drafter has guessed, and how that went."""

    num_drafts: int = 0
    """Times that the next tokens of a sequence were guessed."""
    num_draft_tokens: int = 0
    """The guessed tokens."""
    num_accepted_tokens: int = 0
    """Those of them that were drawn, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats(Stats):
    """Those of a text engine: `num_running` and `num_waiting` count sequences."""

    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    """Blocks held by requests; cached blocks that nobody holds are free."""
    kv_slots_unused: int = 0
    """Allocated but empty slots in held blocks, a shared block counted once."""
    kv_block_size: int = 0
    kv_bytes_committed: int = 0
    """Physical memory that the pool has touched."""
    prefix_cache_queries: int = 0
    """Prompt tokens looked up."""
    prefix_cache_hits: int = 0
    """Prompt tokens found."""
    num_preemptions: int = 0
    drafts: dict[str, DraftCounts] = field(default_factory=dict)
    """By `DrafterName`."""
    step_tokens: int = 0
    """Tokens computed in this step."""
    step_token_budget: int = 0
    """Tokens that the last decided step could have had."""
    step_predicted_s: float = 0.0
    """How long the last step was expected to take; 0 if nobody asks that."""
    step_measured_s: float = 0.0
    """How long it took."""
    schedule_time_s: float = 0.0
    prepare_time_s: float = 0.0
    forward_time_s: float = 0.0
    sample_time_s: float = 0.0

    @property
    def num_drafts(self) -> int:
        """Of all drafters, as the next two."""
        return sum(counts.num_drafts for counts in self.drafts.values())

    @property
    def num_draft_tokens(self) -> int:
        return sum(counts.num_draft_tokens for counts in self.drafts.values())

    @property
    def num_accepted_tokens(self) -> int:
        return sum(counts.num_accepted_tokens for counts in self.drafts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo(AdaptableInfo):
    """Of a text model, whose `path` holds tokenizer and chat template."""

    max_model_len: int
    vocab_size: int
    """Rows of the output layer."""
    num_kv_blocks: int
    kv_block_size: int
    eos_token_ids: tuple[int, ...] = ()
    default_sampling: dict[str, float] = field(default_factory=dict)
    """Sampler parameters where a request says nothing (`engine.default_sampling`); those that are
    not here are neutral then."""
    quality_kl: float | None = None
    """Measured KL divergence of its distributions from its original's, in nats, if it is known."""

    @property
    def log_fields(self) -> dict[str, object]:
        return {"max_model_len": self.max_model_len}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """Whether a model is ready, and if not, why; `GET /ready` shows it."""

    model: str
    phase: Phase
    progress: float | None = None
    """0 to 1 within the phase, where it is known."""
    detail: str | None = None
    """One sanitised line: what is going on."""
    failure: Failure | None = None
    """Why it could not be loaded. Its hint is for the operator and never shown to clients: it may
    name paths."""
    restarts: int = 0
    stalls: int = 0
    """Workers that were ended because they had stopped."""
    kind: str | None = None
    """Name of a row of `engine.kinds`; None until the checkpoint has been found."""
    joining: bool = False
    """It is loaded while the server runs, and has not served yet: nobody waits for it."""

    @property
    def news(self) -> str | None:
        """One line for clients: why it failed, or what is going on."""
        return self.detail if self.failure is None else self.failure.message
