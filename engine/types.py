"""The engine's vocabulary: what a request asks for and what comes back.

Plain frozen dataclasses, free of torch and of wire libraries, so that the scheduler's tests, the
server and the worker process share them. `engine.messages` wraps them for the process border.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from engine.sampling_params import SamplingParams as SamplingParams


class FinishReason(StrEnum):
    """Why a request ended, in OpenAI's words where OpenAI has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


class ModelKind(StrEnum):
    """What a model makes, which decides the routes that serve it."""

    TEXT = "text"
    IMAGE = "image"


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
class GenerateRequest:
    """One prompt to continue. Stop strings and text are the server's business, not the engine's."""

    request_id: str
    model: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    priority: int = 0
    """Lower runs first under the priority policy, as in vLLM."""
    arrival_time_s: float = 0.0
    """`time.time()` when the server accepted it."""
    cache_salt: str | None = None
    """Requests share cached prefixes only with requests of the same salt."""
    adapter: str | None = None
    """LoRA adapter name; None is the base model."""

    @property
    def num_completions(self) -> int:
        """Completions that will end with an event each."""
        return self.sampling.n


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token's log-probability beside the best alternatives at its position.

    `top_ids` and `top_logprobs` are sorted from the most to the least likely and need not hold the
    token itself. `rank` is 1 for the most likely token.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """What one step brought one completion. The last event of a completion has a finish reason."""

    request_id: str
    index: int = 0
    """Which of the `n` completions."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    """One per token id, when asked for."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One per prompt token, in the first event of completion 0; the first prompt token has None."""
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    """The token of `stop_token_ids` that ended it; None after end-of-sequence."""
    num_cached_tokens: int = 0
    """Prompt tokens taken from the prefix cache."""
    queue_time_s: float | None = None
    """From arrival to first scheduling; in the first event only."""
    error_code: str | None = None
    """With finish reason `error`: the code of an EngineError."""
    error_message: str | None = None
    error_param: str | None = None
    """The field that it is about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """A step's statistics, published with its events. Counters are totals since the worker
    started."""

    num_running: int = 0
    num_waiting: int = 0
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
    num_steps: int = 0
    step_tokens: int = 0
    """Tokens computed in this step."""
    step_token_budget: int = 0
    """Tokens that the last decided step could have had."""
    step_predicted_s: float = 0.0
    """How long the last step was expected to take; 0 if nothing bounds that."""
    step_measured_s: float = 0.0
    """How long it took."""
    schedule_time_s: float = 0.0
    prepare_time_s: float = 0.0
    forward_time_s: float = 0.0
    sample_time_s: float = 0.0
    publish_time_s: float = 0.0
    """Publishing of the previous step, since this one's is not over yet."""
    num_threads: int = 0
    """CPU threads that steps use now (`adaptive_threads`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the server must know of a loaded model. Made by the worker, sent once it can serve."""

    model: str
    path: str
    """Local folder or GGUF file that holds tokenizer and chat template. Never shown to clients."""
    architecture: str
    max_model_len: int
    vocab_size: int
    """Rows of the output layer: token ids at or above it are refused."""
    dtype: str
    created: int
    """Unix time at which it became ready."""
    num_kv_blocks: int
    kv_block_size: int
    eos_token_ids: tuple[int, ...] = ()
    default_sampling: dict[str, float] = field(default_factory=dict)
    """From the checkpoint's generation_config.json: temperature, top_p, top_k, min_p,
    repetition_penalty, where it gives them."""
    config_hash: str = ""
    """Short hash of the resolved configuration; part of `system_fingerprint`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """Whether a model is ready, and if not, why; `GET /ready` shows it."""

    model: str
    phase: Phase
    progress: float | None = None
    """0 to 1 within the phase, where it is known."""
    detail: str | None = None
    """One sanitised line: what is going on, or what failed."""
    error_code: str | None = None
    restarts: int = 0
    stalls: int = 0
    """Workers that were ended because they had stopped."""
    kind: ModelKind | None = None
    """None until the checkpoint has been found."""
    hint: str | None = None
    """What the operator may read besides of a failure. Never shown to clients: it may name
    paths."""
