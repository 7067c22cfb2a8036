"""The settings that an engine runs with, and how they follow from the operator's.

`resolve()` is a pure function of the settings and of facts about the model and the machine.
"""

from dataclasses import asdict, dataclass
from typing import Literal

from engine.contract.fingerprint import fingerprint
from engine.contract.knob import GIB
from engine.contract.kv_layout import KvLayout
from engine.contract.text_settings import TextSettings
from engine.contract.worker_settings import Policy
from engine.errors import InsufficientMemory, InvalidParameter

AUTO_STEP_RATIO = 3.0
"""How many times longer prompts may make a step unless `max_step_ms` is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The facts about a checkpoint that sizing needs, before its weights are read."""

    max_position_embeddings: int
    kv_bytes_per_token: int
    """The bytes of a token's keys and values in one layer group of the cache; 0 if no layer
    attends."""
    weight_bytes: int
    """The bytes of the weights and of the states of pictures that are kept."""
    step_bytes: int = 0
    """The bytes of activations and graphs of the largest step, and on a CPU also of structures; 0
    until they are known."""
    kv_windows: tuple[int | None, ...] = (None,)
    """The window of each layer group (`engine.contract.kv_layout`)."""
    recurrent_bytes: int = 0
    """The bytes of one text's recurrent states; 0 without any."""
    draft_kv_bytes_per_token: int = 0
    """The bytes that a draft model's cache takes per token of a layer group."""

    @property
    def cache_bytes_per_token(self) -> int:
        """The bytes of both caches per token of one layer group of the model."""
        return self.kv_bytes_per_token + self.draft_kv_bytes_per_token


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """The facts about the machine that sizing needs."""

    device: Literal["cpu", "cuda"]
    num_cores: int
    free_memory_bytes: int
    """The free memory of the device that holds the KV pool, before weights are loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedConfig:
    """The settings that the engine runs with, without `auto` and None."""

    device: Literal["cpu", "cuda"]
    dtype: Literal["bfloat16", "float16", "float32"]
    quantization: str
    """A name of `FORMATS`, or `none`."""
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_step_ms: float
    """The target for a step with prompts while others wait for tokens; 0 is none."""
    max_step_ratio: float
    """The most times that such a step may take longer than one of decodes alone; 0 is no limit."""
    block_size: int
    num_kv_blocks: int
    kv_cache_dtype: Literal["bfloat16", "float16", "float32", "int8", "fp8"]
    enable_prefix_caching: bool
    max_idle_cached_blocks: int
    """Cached blocks without an owner beyond this number are dropped, oldest first."""
    scheduling_policy: Policy
    max_num_queued: int
    num_threads: int
    """The threads of each rank."""
    seed: int | None
    async_scheduling: bool
    record_steps: bool
    num_speculative_tokens: int
    """The most tokens of a draft; 0 turns speculation off."""
    prompt_lookup_min: int
    prompt_lookup_max: int
    shared_lookup_tokens: int
    deterministic: bool
    debug_invariants: bool
    tensor_parallel_size: int = 1
    num_recurrent_slots: int = 0
    """The slots for recurrent states: two for each sequence that may run; 0 without any."""

    @property
    def max_decode_rows(self) -> int:
        """The most rows of a step's decodes, drafts included. Within the budget there is always
        room for one decode with the longest draft."""
        most = max(self.max_num_seqs, 1 + self.num_speculative_tokens)
        return min(most, self.max_num_batched_tokens)

    def kv_layout(self, windows: tuple[int | None, ...]) -> KvLayout:
        """The KV layout for a model with these windows."""
        return _kv_layout(
            windows,
            block_size=self.block_size,
            step_tokens=self.max_num_batched_tokens,
            overlaps=self.async_scheduling,
        )

    def fingerprint(self) -> str:
        """A short hash of what shapes answers, without values that follow from free memory."""
        values = asdict(self)
        for name in ("num_kv_blocks", "max_idle_cached_blocks", "num_recurrent_slots"):
            del values[name]
        return fingerprint(sorted(values.items()))


def resolve(intent: TextSettings, model: ModelFacts, machine: MachineFacts) -> ResolvedConfig:
    """Turn the operator's settings into those that the engine runs with.

    Raises:
        InvalidParameter: `max_model_len` is more than the model was trained for,
            `prompt_lookup_min` is more than `prompt_lookup_max`, or a draft model has no tokens to
            guess.
        InsufficientMemory: one request of `max_model_len` does not fit into the pool.
    """
    wanted_len = _wanted_len(intent, model)
    _check_speculation(intent)
    block_bytes = model.cache_bytes_per_token * intent.block_size
    num_kv_blocks = intent.num_kv_blocks or _num_kv_blocks(wanted_len, intent, model, machine)
    overlaps = _wants_async_scheduling(intent, machine)
    num_ranks = intent.tensor_parallel_size
    return ResolvedConfig(
        device=machine.device,
        dtype=intent.model_dtype,
        quantization=intent.quantization,
        max_model_len=_len_within(num_kv_blocks, wanted_len, intent, model, machine),
        max_num_seqs=intent.max_num_seqs,
        max_num_batched_tokens=intent.max_num_batched_tokens,
        max_step_ms=intent.max_step_ms or 0.0,
        max_step_ratio=_max_step_ratio(intent, machine),
        block_size=intent.block_size,
        num_kv_blocks=num_kv_blocks,
        kv_cache_dtype=intent.resolved_kv_cache_dtype,
        enable_prefix_caching=intent.enable_prefix_caching,
        max_idle_cached_blocks=_max_idle_cached_blocks(intent, machine, num_kv_blocks, block_bytes),
        scheduling_policy=intent.scheduling_policy,
        max_num_queued=intent.max_num_queued,
        num_threads=max(1, (intent.num_threads or machine.num_cores) // num_ranks),
        seed=intent.seed,
        async_scheduling=overlaps,
        record_steps=intent.record_steps and num_ranks == 1,
        num_speculative_tokens=_num_speculative_tokens(intent, model, machine),
        prompt_lookup_min=intent.prompt_lookup_min,
        prompt_lookup_max=intent.prompt_lookup_max,
        shared_lookup_tokens=intent.shared_lookup_tokens,
        deterministic=intent.deterministic,
        debug_invariants=intent.debug_invariants,
        tensor_parallel_size=num_ranks,
        num_recurrent_slots=num_recurrent_slots(intent) if model.recurrent_bytes else 0,
    )


def _num_kv_blocks(
    wanted_len: int, intent: TextSettings, model: ModelFacts, machine: MachineFacts
) -> int:
    block_bytes = model.cache_bytes_per_token * intent.block_size
    if block_bytes == 0:  # no layer attends: there are enough for all texts
        return intent.max_num_seqs * kv_layout_of(intent, model, machine).most_blocks(wanted_len)
    return pool_bytes(intent, model, machine) // block_bytes


def num_recurrent_slots(intent: TextSettings) -> int:
    """The slots of a model with recurrent states: for each sequence one that a step reads and one
    that it writes."""
    return 2 * intent.max_num_seqs


def _wanted_len(intent: TextSettings, model: ModelFacts) -> int:
    trained = model.max_position_embeddings
    max_model_len = intent.max_model_len or trained
    if max_model_len > trained:
        raise InvalidParameter(
            f"max_model_len is {max_model_len}; the model was trained for {trained} tokens; "
            f"lower max_model_len",
            param="max_model_len",
        )
    return max_model_len


def _check_speculation(intent: TextSettings) -> None:
    if intent.prompt_lookup_min > intent.prompt_lookup_max:
        raise InvalidParameter(
            f"prompt_lookup_min is {intent.prompt_lookup_min}; it must be at most "
            f"prompt_lookup_max, which is {intent.prompt_lookup_max}",
            param="prompt_lookup_min",
        )
    if intent.speculative_model is not None and intent.num_speculative_tokens == 0:
        raise InvalidParameter(
            "speculative_model is set and num_speculative_tokens is 0; leave "
            "num_speculative_tokens out, or set it, for example to 8, or leave speculative_model "
            "out",
            param="num_speculative_tokens",
        )


def _num_speculative_tokens(intent: TextSettings, model: ModelFacts, machine: MachineFacts) -> int:
    """The most tokens of a draft. Unasked, nothing is guessed where a guess costs more than its
    row: on a GPU, where its step is not launched ahead, and where it changes a recurrent state."""
    if intent.num_speculative_tokens is not None:
        return intent.num_speculative_tokens
    costs_more = machine.device != "cpu" or model.recurrent_bytes > 0
    return 0 if costs_more and intent.speculative_model is None else 8


def _len_within(
    num_kv_blocks: int,
    wanted_len: int,
    intent: TextSettings,
    model: ModelFacts,
    machine: MachineFacts,
) -> int:
    """The longest request that fits into the pool, at most `wanted_len`. It is shorter only if the
    operator did not ask for a length."""
    layout = kv_layout_of(intent, model, machine)
    needed = layout.most_blocks(wanted_len)
    if needed <= num_kv_blocks:
        return wanted_len
    most = layout.most_tokens(num_kv_blocks)
    if intent.max_model_len is not None:
        needed_gib = needed * model.cache_bytes_per_token * intent.block_size / GIB
        raise InsufficientMemory(
            f"the KV pool has {num_kv_blocks} blocks of {intent.block_size} tokens; one request of "
            f"max_model_len {wanted_len} needs {needed}; lower max_model_len to {most} or raise "
            f"kv_cache_memory_gib to {needed_gib:.2f}"
        )
    if most == 0:
        raise InsufficientMemory(
            f"{machine.free_memory_bytes / GIB:.2f} GiB are free; weights take "
            f"{model.weight_bytes / GIB:.2f} GiB and steps {model.step_bytes / GIB:.2f} GiB, which "
            f"leaves nothing for the KV cache; use a smaller model, lower max_num_batched_tokens "
            f"or free memory"
        )
    return most


def kv_layout_of(intent: TextSettings, model: ModelFacts, machine: MachineFacts) -> KvLayout:
    """The KV layout that texts will have."""
    return _kv_layout(
        model.kv_windows,
        block_size=intent.block_size,
        step_tokens=intent.max_num_batched_tokens,
        overlaps=_wants_async_scheduling(intent, machine),
    )


def _kv_layout(
    windows: tuple[int | None, ...], *, block_size: int, step_tokens: int, overlaps: bool
) -> KvLayout:
    # With overlap a second step is launched before the first one is committed.
    max_in_flight = step_tokens * (2 if overlaps else 1)
    return KvLayout(block_size=block_size, windows=windows, max_in_flight=max_in_flight)


def _wants_async_scheduling(intent: TextSettings, machine: MachineFacts) -> bool:
    """Whether steps overlap. On a CPU they cannot: a step is over when its launch returns."""
    if intent.async_scheduling == "auto":
        return machine.device == "cuda"
    return intent.async_scheduling == "on"


def _max_step_ratio(intent: TextSettings, machine: MachineFacts) -> float:
    """The limit on how much longer prompts may make a step. With 3, prompts get two
    thirds of a step's time.

    There is none on a GPU unless asked for: steps with prompts were not timed there, and without
    `deterministic` the last bits of a text depend on the size of its chunks and so on the clock.
    """
    is_auto = intent.max_step_ms is None
    return AUTO_STEP_RATIO if is_auto and machine.device == "cpu" else 0.0


def pool_bytes(intent: TextSettings, model: ModelFacts, machine: MachineFacts) -> int:
    """The most bytes of the pool. On a CPU at most 4 GiB by default, as others use the memory,
    too. Replicas share what one worker would have; the size that the operator has set is for
    each."""
    if intent.kv_cache_memory_gib is not None:
        return int(intent.kv_cache_memory_gib * GIB)
    if machine.device == "cuda":
        usable = int(machine.free_memory_bytes * intent.gpu_memory_utilization)
        usable //= intent.num_sharing
        return max(0, usable - model.weight_bytes - model.step_bytes)
    left = machine.free_memory_bytes - model.weight_bytes - model.step_bytes
    return max(0, min(4 * GIB, left // 2)) // intent.num_sharing


def _max_idle_cached_blocks(
    intent: TextSettings, machine: MachineFacts, num_kv_blocks: int, block_bytes: int
) -> int:
    if not intent.enable_prefix_caching:
        return 0
    if intent.prefix_cache_memory_gib is not None and block_bytes:
        return min(num_kv_blocks, int(intent.prefix_cache_memory_gib * GIB) // block_bytes)
    # What other servers computed waits among them until its request begins.
    keeps_all = machine.device == "cuda" or intent.kv_transfer is not None
    return num_kv_blocks if keeps_all and block_bytes else max(1, num_kv_blocks // 8)
