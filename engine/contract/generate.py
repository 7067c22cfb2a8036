"""Requests for text and their answers."""

from dataclasses import dataclass, field
from enum import StrEnum

from engine.contract.embed import EmbeddingFacts, EmbeddingStats
from engine.contract.picture_facts import PictureFacts
from engine.contract.prompt_states import StatePart
from engine.contract.request import AdaptableInfo, Event, Info, Request, Stats
from engine.contract.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class Pin:
    """A wish to keep the beginning of a prompt cached."""

    num_tokens: int
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLoan:
    """KV blocks of a prompt that a worker keeps until another one has fetched them."""

    host: str
    port: int
    engine_id: str
    """The lending worker, by a name that no other process had."""
    ticket: str
    """The loan's name, and the proof that a worker with the same key made it."""
    num_tokens: int = 0
    block_ids: list[list[int]] = field(default_factory=list)
    """The blocks of each layer group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest(Request["TokenEvent"]):
    """A prompt to continue. Stop strings and text belong to the server, not to the engine."""

    prompt_token_ids: list[int]
    sampling: SamplingParams
    cache_salt: str | None = None
    """Requests share cached prefixes only with requests that have the same salt."""
    client: str = ""
    """The client, as far as the server can tell; clients take turns when structures are read."""
    states: tuple[StatePart, ...] = ()
    """The stretches of the prompt that are states, in order; they do not overlap."""
    pins: tuple[Pin, ...] = ()
    lends_kv: bool = False
    """Keep the prompt's KV blocks for another worker when the text has ended."""
    kv_loan: KvLoan | None = None
    """The prompt's KV blocks, to be fetched from the worker that computed them."""

    @property
    def num_input_tokens(self) -> int:
        return len(self.prompt_token_ids)

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
    """The number of tokens after which it repeats."""
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
    kv_loan: KvLoan | None = None
    """The blocks that are kept for another worker, with the end of a text that asked for it."""


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
class KvStoreCounts:
    """What a KV store has done."""

    num_blocks_read: int = 0
    num_bytes_read: int = 0
    num_blocks_written: int = 0
    num_bytes_written: int = 0
    num_blocks_lost: int = 0
    """The number of blocks that were not written, because the disk failed or was too slow."""
    num_files_refused: int = 0
    """The number of files that were damaged, or not what their names say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvTransferCounts:
    """What was done to hand KV blocks over to other workers, and to take them over."""

    num_loans: int = 0
    """The number of prompts whose blocks were kept for another worker."""
    num_loans_expired: int = 0
    """The number of these that nobody fetched in time."""
    num_loans_withdrawn: int = 0
    """The number of these whose blocks were needed here."""
    num_loans_refused: int = 0
    """The number of prompts whose blocks were not kept, because too many were kept already."""
    num_blocks_lent: int = 0
    """The number of blocks that are kept now; one that is kept for two counts twice."""
    num_blocks_sent: int = 0
    num_blocks_fetched: int = 0
    num_fetches_failed: int = 0
    """The number of prompts that were computed, or a part of them, because their blocks could not
    be fetched."""


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
    kv_store: KvStoreCounts = KvStoreCounts()
    kv_transfer: KvTransferCounts = KvTransferCounts()
    kv_event_batches_dropped: int = 0
    """The batches of cache events that were not published in time."""
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
    embedding: EmbeddingStats | None = None
    """The statistics of embeddings that the same model makes."""

    @property
    def parts(self) -> tuple[Stats, ...]:
        return () if self.embedding is None else (self.embedding,)

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
    max_idle_blocks: int = 0
    """The most blocks that the prefix cache keeps while no request holds them."""
    eos_token_ids: tuple[int, ...] = ()
    default_sampling: dict[str, float] = field(default_factory=dict)
    """The sampler parameters of requests that give none (`engine.weights.default_sampling`);
    parameters that are missing here are neutral."""
    quality_kl: float | None = None
    """The measured KL divergence from the original's distributions in nats, if known."""
    embedding: EmbeddingFacts | None = None
    """The embeddings that the same weights make."""
    shares_kv: bool = False
    """Whether other workers may take over KV blocks, from this one or from a folder."""
    pictures: PictureFacts | None = None
    """How the model sees pictures in its prompts; None if it takes none."""

    @property
    def parts(self) -> tuple[Info, ...]:
        return () if self.embedding is None else (self.embedding.info(self),)

    @property
    def log_fields(self) -> dict[str, object]:
        return {"max_model_len": self.max_model_len}
