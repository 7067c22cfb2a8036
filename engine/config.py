"""The operator's settings (`EngineConfig`) and their resolution on this machine (`ResolvedConfig`).

`resolve()` is a pure function of both: the machine's facts come in as arguments. Nothing
here reads the environment; `server/settings/settings.py` does, and builds an `EngineConfig`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from engine.default_sampling import checked
from engine.errors import InsufficientMemory, InvalidParameter, ModelLoadError
from engine.fingerprint import fingerprint
from engine.gpus import is_device
from engine.kv_layout import KvLayout
from engine.quantization.table import FORMATS, ImageQuantization, Quantization
from engine.text.chat_format import ReasoningParserSetting, ToolCallParserSetting

Device = str
"""`auto`, `cpu`, `cuda` or `cuda:N` (`engine.gpus`)."""
DType = Literal["auto", "bfloat16", "float16", "float32"]
WantedKind = Literal["auto", "embedding", "upscaler"]
KvCacheDType = Literal["auto", "int8", "fp8"]
LoraDType = Literal["auto", "model", "int8"]
Policy = Literal["fcfs", "priority"]
AsyncScheduling = Literal["auto", "on", "off"]
CpuIsa = Literal[
    "auto",
    "native",
    "x86-64-v3",
    "x86-64-v3-vnni",
    "x86-64-v4",
    "x86-64-v4-vnni",
    "x86-64-v4-bf16",
    "x86-64-v4-amx",
]

GIB = 1 << 30
MAX_ADAPTER_NAME = 256
"""The most characters of an adapter's name."""
AUTO_STEP_RATIO = 2.0
"""How many times longer prompts may make a step unless `max_step_ms` is set."""


def split_adapter(entry: str) -> tuple[str, str]:
    """The name and the folder or file of `NAME=PATH`."""
    name, _, folder = entry.partition("=")
    return name.strip(), folder.strip()


def check_adapter(name: str, folder: str, *, param: str = "lora") -> None:
    """Check that name and folder can be written as `NAME=PATH`.

    Raises:
        InvalidParameter: they cannot.
    """
    is_printable = name.isprintable() and folder.isprintable() and "=" not in name
    is_stripped = name == name.strip() and folder == folder.strip()
    if not folder or not 0 < len(name) <= MAX_ADAPTER_NAME or not (is_printable and is_stripped):
        raise InvalidParameter(
            f"an adapter must be NAME=PATH in printable characters; NAME has at most "
            f"{MAX_ADAPTER_NAME} characters and no =",
            param=param,
        )


def knob(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    le: float | None = None,
    form: str | None = None,
    names_files: bool = False,
) -> Any:
    """A dataclass field with a help text and bounds.

    The text feeds `--help` and the docs' table. `form` describes the possible values where the type
    does not. Fields with `names_files` hold paths of this machine: clients neither set nor see
    them."""
    metadata = {"help": help, "ge": ge, "le": le, "form": form, "names_files": names_files}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The operator's settings of one engine; `auto` and None leave the choice to model and
    machine."""

    device: Device = knob(
        "auto",
        "Where the model runs: auto takes an NVIDIA GPU if there is one, cuda:1 the second one.",
        form="auto|cpu|cuda|cuda:N",
    )
    dtype: DType = knob(
        "auto",
        "Weights and activations; auto is bfloat16, and float32 for encoders, which make "
        "embeddings.",
    )
    kind: WantedKind = knob(
        "auto",
        "What a model is served as. auto: what its checkpoint is made for. embedding: a text "
        "model also makes embeddings, from the state of the last token. upscaler: a .safetensors "
        "file is a network that enlarges images, whatever its weights are called.",
    )
    quantization: Quantization = knob(
        "auto",
        "How linear layers keep their weights. auto: as the checkpoint has them, unless plain "
        "weights measured faster on this CPU and fit into memory. none: plain, in dtype. gguf, "
        "gptq, awq, bitsandbytes, compressed-tensors, fp8: packed as in the checkpoint, which "
        "takes less memory for the same results. Rounded at load: int8-weights and int4 in groups "
        "of 32; bnb-nf4, bnb-fp4 and bnb-int8 as bitsandbytes does. Faster and less precise, on "
        "CPUs: int8 rounds any weights to 8 bits at load, and activations in each step; gguf-int8 "
        "rounds only the activations of a GGUF file.",
    )
    max_kl: float | None = knob(
        None,
        "Refuse a text model whose measured KL divergence from its original is larger than this, "
        "in nats. The divergence is known for models that were measured with tandem perplexity "
        "--save; others are served with a warning.",
        ge=0.0,
    )
    tool_call_parser: ToolCallParserSetting = knob(
        "auto",
        "How function calls are read from a text model's answers. auto: chosen by its chat "
        "template. json: JSON objects with a name and arguments.",
    )
    reasoning_parser: ReasoningParserSetting = knob(
        "auto",
        "How a text model's reasoning is separated from its answer. auto: chosen by its chat "
        "template. none: it stays in the answer. deepseek_r1: an answer begins with reasoning "
        "even if nothing marks it.",
    )
    generation_config: str = knob(
        "auto",
        "Where a text model's default sampling parameters come from. auto: its makers' "
        "recommendation, from generation_config.json, the metadata of a GGUF file or, for some "
        "models, a table of ours. none: temperature 1 and nothing else. PATH: another "
        "generation_config.json, or a folder with one.",
        form="auto|none|PATH",
        names_files=True,
    )
    override_generation_config: dict[str, float] | None = knob(
        None,
        "Default sampling parameters that replace those of generation_config, as a JSON object: "
        '{"temperature": 0.5, "top_p": 0.9}.',
        form="JSON",
    )
    max_model_len: int | None = knob(
        None,
        "Longest prompt plus output, in tokens; by default what the model was trained for.",
        ge=1,
    )
    max_num_seqs: int = knob(64, "Most requests in one step.", ge=1)
    max_num_batched_tokens: int = knob(
        512, "Token budget of one step, for prompts and decodes together.", ge=1
    )
    max_step_ms: float | None = knob(
        None,
        "Longest step that includes prompts while others are being answered, in milliseconds: "
        "prompts are cut so that the time between tokens stays below it; 0 is no limit. By "
        "default, on a CPU, twice the time of the same step without prompts, but at least 25 ms; "
        "on a GPU no limit.",
        ge=0.0,
        le=3_600_000.0,
    )
    block_size: int = knob(16, "Tokens in a KV block.", ge=1, le=256)
    num_kv_blocks: int | None = knob(
        None, "Size of the KV pool in blocks; by default from the memory budget.", ge=1
    )
    kv_cache_memory_gib: float | None = knob(
        None, "Limit of the KV pool; by default a share of the free memory.", ge=0.001
    )
    gpu_memory_utilization: float = knob(
        0.9, "Share of the GPU's memory for weights, activations and KV together.", ge=0.05, le=1.0
    )
    kv_cache_dtype: KvCacheDType = knob(
        "auto",
        "How the KV cache keeps keys and values. auto: in dtype. int8, fp8: in one byte each, "
        "with a scale per token and head, so about twice as many tokens fit. docs/quantization.md "
        "says what that costs.",
    )
    enable_prefix_caching: bool = knob(True, "Reuse the KV blocks of equal prompt prefixes.")
    prefix_cache_memory_gib: float | None = knob(
        None,
        "Most memory for cached blocks that no request holds; by default an eighth of the pool's "
        "limit on a CPU, no bound on a GPU.",
        ge=0.0,
    )
    scheduling_policy: Policy = knob(
        "fcfs",
        "Whose turn is next, for models of every kind: first come, first served; or by the "
        "requests' priority, then by arrival.",
    )
    max_num_queued: int = knob(1024, "Requests that may wait for a place in the batch.", ge=1)
    num_threads: int | None = knob(
        None,
        "Most CPU threads of a worker. By default one per core that affinity and the container's "
        "quota allow, less one for HTTP if there are more than two.",
        ge=1,
    )
    adaptive_threads: bool = knob(
        True,
        "On a CPU, use fewer threads while other processes keep the cores busy, because threads "
        "that wait for a core hold up all the others.",
    )
    seed: int | None = knob(None, "Seed for requests that send none.")
    async_scheduling: AsyncScheduling = knob(
        "auto",
        "Decide and launch the next step while the device runs this one; auto: only on a GPU.",
    )
    record_steps: bool = knob(
        True,
        "Replay recorded steps: on a GPU decode steps as CUDA graphs, on a CPU most steps as "
        "lists of calls to the C++ operations.",
    )
    num_speculative_tokens: int = knob(
        0,
        "Most tokens to guess per request and step, from its own text so far (prompt lookup) or "
        "with speculative_model. If guesses are often right, a step yields several tokens; texts "
        "stay the same, and under load nothing is guessed. 0 turns it off; 8 is a good value on a "
        "CPU.",
        ge=0,
        le=64,
    )
    speculative_model: str | None = knob(
        None,
        "A second, cheaper text model that guesses when prompt lookup finds nothing. It must use "
        "the same tokens as the model, and may be the same model in fewer bits. How much it "
        "guesses depends on how often it is right and how long it takes.",
        form="MODEL",
        names_files=True,
    )
    speculative_quantization: Quantization = knob(
        "auto",
        "How the linear layers of speculative_model keep their weights; as quantization.",
    )
    prompt_lookup_min: int = knob(
        3,
        "How many of the last tokens must have occurred before, so that prompt lookup guesses what "
        "followed them.",
        ge=1,
        le=64,
    )
    prompt_lookup_max: int = knob(
        8, "How many tokens are compared to choose between several earlier places.", ge=1, le=64
    )
    shared_lookup_tokens: int = knob(
        0,
        "Also guess from finished texts, keeping this many of their most recent tokens (about 200 "
        "bytes each). Only requests with the same cache_salt and adapter share them. 0 turns it "
        "off.",
        ge=0,
        le=1 << 24,
    )
    worker_timeout_s: float = knob(
        60.0,
        "Restart a worker after this many seconds without a sign of life, or with its loop "
        "blocked while requests wait.",
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
    debug_invariants: bool = knob(
        False, "Check the scheduler's invariants after every step (slow)."
    )
    image_dtype: DType = knob(
        "auto", "Element type of image models: auto is bfloat16 on a GPU and float32 on a CPU."
    )
    image_share: float = knob(
        0.5,
        "Largest share of time that image steps take while text is being generated; 1 is no limit.",
        ge=0.05,
        le=1.0,
    )
    image_quantization: ImageQuantization = knob(
        "none",
        "Quantize an image model's denoiser and T5 encoder at load, with the formats of "
        "quantization; CLIP encoders and the autoencoder stay as they are.",
    )
    max_num_rows: int = knob(
        32, "Most rows (images times guidance branches) in one denoiser call.", ge=1, le=1024
    )
    max_batch_megapixels: float = knob(
        4.2,
        "Most megapixels of all rows in one denoiser call; limits the memory for activations.",
        ge=0.001,
    )
    max_num_images: int = knob(
        32, "Most images that one image model works on at once; others wait.", ge=1, le=4096
    )
    lora: tuple[str, ...] = knob(
        (),
        "LoRA adapters, as NAME=PATH; requests use the name as their model. For text models: a "
        "folder with PEFT's adapter_config.json and adapter_model.safetensors. For image models: "
        "the same, or a .safetensors file from kohya, LyCORIS or diffusers.",
        form="NAME=PATH",
        names_files=True,
    )
    max_loras: int | None = knob(
        None,
        "Most LoRA adapters of a model that can be used in one step; requests for others wait "
        "until one of these is free. By default as many as the model has: those of lora, plus 16 "
        "if clients may load some.",
        ge=0,
        le=1024,
    )
    max_cpu_loras: int | None = knob(
        None,
        "Most LoRA adapters that a model has in total, in use or not; by default max_loras, and "
        "at least those of lora.",
        ge=0,
        le=65536,
    )
    lora_memory_gib: float | None = knob(
        None,
        "Limit on the memory of a model's LoRA adapters. The least recently used ones make way "
        "and are read again when a request needs them. By default as much as max_loras need.",
        ge=0.0,
    )
    lora_dtype: LoraDType = knob(
        "auto",
        "How a text model's LoRA adapters are kept. model: in its dtype. int8 (only on a CPU): "
        "half of the bytes that bfloat16 reads in each step, with an error below 1% of an update. "
        "auto: int8 on a CPU if the model's own weights are quantized and dtype is not float32, "
        "else model.",
    )
    deterministic: bool = knob(
        False,
        "Give bit-equal answers whatever else runs, even where that is slower: images on a GPU "
        "or in bfloat16 are not batched, and text on a GPU uses slower matrix products. Image "
        "models keep a fixed number of threads.",
    )

    def __post_init__(self) -> None:
        if not is_device(self.device):
            raise InvalidParameter(
                f"device is {self.device!r}; it must be auto, cpu, cuda or cuda:N", param="device"
            )
        for name, folder in self.adapters.items():
            check_adapter(name, folder)
        try:
            checked(self.override_generation_config or {})
        except InvalidParameter as error:
            raise InvalidParameter(error.message, param="override_generation_config") from None
        if len(self.adapters) < len(self.lora):
            raise InvalidParameter("two adapters of lora have the same name", param="lora")
        if len(self.lora) > self.max_adapters:
            raise InvalidParameter(
                f"lora names {len(self.lora)} adapters and max_cpu_loras is {self.max_cpu_loras}; "
                f"raise max_cpu_loras",
                param="max_cpu_loras",
            )
        if not min(1, self.max_adapters) <= self.max_adapter_slots <= self.max_adapters:
            raise InvalidParameter(
                f"max_loras is {self.max_loras}; it must be from 1 to max_cpu_loras, which is "
                f"{self.max_adapters}",
                param="max_loras",
            )
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or isinstance(value, bool | str | tuple | dict):
                continue
            low, high = f.metadata["ge"], f.metadata["le"]
            if (low is not None and value < low) or (high is not None and value > high):
                bound = " and ".join(
                    [f"at least {low}"] * (low is not None)
                    + [f"at most {high}"] * (high is not None)
                )
                raise InvalidParameter(f"{f.name} is {value}; it must be {bound}", param=f.name)

    @property
    def adapters(self) -> dict[str, str]:
        """The folders or files of the adapters, by name."""
        return dict(map(split_adapter, self.lora))

    @property
    def max_adapters(self) -> int:
        """The most adapters of a model."""
        if self.max_cpu_loras is not None:
            return self.max_cpu_loras
        return max(len(self.lora), self.max_loras or 0)

    @property
    def max_adapter_slots(self) -> int:
        """The most adapters that one step can use."""
        return self.max_adapters if self.max_loras is None else self.max_loras

    @property
    def adapter_bytes(self) -> int | None:
        """The most bytes of adapters; None is no limit."""
        return None if self.lora_memory_gib is None else int(self.lora_memory_gib * GIB)

    def has_packed_adapters(self, device: str, quantization: str) -> bool:
        """Whether a text model's adapters are kept in 8 bits.

        Args:
            device: cpu or cuda.
            quantization: how the model's weights are kept.

        Raises:
            ModelLoadError: 8 bits were asked for on a device that cannot keep them.
        """
        if self.lora_dtype == "auto":
            is_exact = self.model_dtype == "float32" or quantization == "none"
            return device == "cpu" and not is_exact
        if self.lora_dtype == "int8" and device != "cpu":
            raise ModelLoadError(
                f"lora_dtype is int8, which works only on a CPU, and the model is on {device}; "
                f"use auto",
                param="lora_dtype",
            )
        return self.lora_dtype == "int8"

    def with_adapters(self, adapters: Mapping[str, str]) -> "EngineConfig":
        """A copy with these adapters and room for exactly them."""
        lora = tuple(f"{name}={folder}" for name, folder in adapters.items())
        most, slots = self.max_adapters, self.max_adapter_slots
        return replace(self, lora=lora, max_cpu_loras=most, max_loras=slots)

    @property
    def resolved_kv_cache_dtype(self) -> Literal["bfloat16", "float16", "float32", "int8", "fp8"]:
        """The type of keys and values in the cache; `auto` is that of weights and activations."""
        return self.model_dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    @property
    def model_dtype(self) -> Literal["bfloat16", "float16", "float32"]:
        """The type of weights and activations; `auto` is bfloat16."""
        return "bfloat16" if self.dtype == "auto" else self.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The facts about a checkpoint that sizing needs, before its weights are read."""

    max_position_embeddings: int
    kv_bytes_per_token: int
    """The bytes of a token's keys and values in one layer group of the cache."""
    weight_bytes: int
    step_bytes: int = 0
    """The bytes of activations and graphs of the largest step; 0 until measured, and on a CPU."""
    kv_windows: tuple[int | None, ...] = (None,)
    """The window of each layer group (`engine.kv_layout`)."""
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
        del values["num_kv_blocks"], values["max_idle_cached_blocks"]
        return fingerprint(sorted(values.items()))


def resolve(intent: EngineConfig, model: ModelFacts, machine: MachineFacts) -> ResolvedConfig:
    """Turn the operator's settings into those that the engine runs with.

    Raises:
        InvalidParameter: `max_model_len` is more than the model was trained for,
            `prompt_lookup_min` is more than `prompt_lookup_max`, or a draft model has no tokens to
            guess.
        InsufficientMemory: the pool has no room for one request of `max_model_len`.
    """
    wanted_len = _wanted_len(intent, model)
    _check_speculation(intent)
    block_bytes = model.cache_bytes_per_token * intent.block_size
    num_kv_blocks = intent.num_kv_blocks or pool_bytes(intent, model, machine) // block_bytes
    overlaps = _wants_async_scheduling(intent, machine)
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
        num_threads=intent.num_threads or machine.num_cores,
        seed=intent.seed,
        async_scheduling=overlaps,
        record_steps=intent.record_steps,
        num_speculative_tokens=intent.num_speculative_tokens,
        prompt_lookup_min=intent.prompt_lookup_min,
        prompt_lookup_max=intent.prompt_lookup_max,
        shared_lookup_tokens=intent.shared_lookup_tokens,
        deterministic=intent.deterministic,
        debug_invariants=intent.debug_invariants,
    )


def _wanted_len(intent: EngineConfig, model: ModelFacts) -> int:
    trained = model.max_position_embeddings
    max_model_len = intent.max_model_len or trained
    if max_model_len > trained:
        raise InvalidParameter(
            f"max_model_len is {max_model_len}; the model was trained for {trained} tokens; "
            f"lower max_model_len",
            param="max_model_len",
        )
    return max_model_len


def _check_speculation(intent: EngineConfig) -> None:
    if intent.prompt_lookup_min > intent.prompt_lookup_max:
        raise InvalidParameter(
            f"prompt_lookup_min is {intent.prompt_lookup_min}; it must be at most "
            f"prompt_lookup_max, which is {intent.prompt_lookup_max}",
            param="prompt_lookup_min",
        )
    if intent.speculative_model is not None and not intent.num_speculative_tokens:
        raise InvalidParameter(
            "speculative_model is set and num_speculative_tokens is 0; set num_speculative_tokens, "
            "for example to 8, or leave speculative_model out",
            param="num_speculative_tokens",
        )


def _len_within(
    num_kv_blocks: int,
    wanted_len: int,
    intent: EngineConfig,
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


def kv_layout_of(intent: EngineConfig, model: ModelFacts, machine: MachineFacts) -> KvLayout:
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


def resolve_quantization(
    wanted: Quantization,
    device: Literal["cpu", "cuda"],
    *,
    stored: str | None,
    has_native: bool,
    prefers_plain: bool = False,
) -> str:
    """How linear layers are kept: a name of `FORMATS`, or `none`. `auto` is resolved, and any other
    choice is checked.

    Args:
        wanted: the operator's choice.
        stored: the checkpoint's format, if the kernels can multiply with it.
        has_native: whether the device's own operations are available: C++ on a CPU, Triton on a
            GPU.
        prefers_plain: whether packed weights would be slower than plain ones.

    Raises:
        ModelLoadError: the choice is not possible here.
    """
    if wanted == "auto":
        return stored if stored and _is_kept(stored, device, has_native, prefers_plain) else "none"
    if wanted == "none":
        return wanted
    facts = FORMATS[wanted]
    if facts.stored_as not in (None, stored):
        raise _impossible(wanted, f"the model has no weights {facts.described}")
    if facts.cpu_only and device != "cpu":
        raise _impossible(wanted, "it is for CPUs only")
    if facts.needs_native and device == "cpu" and not has_native:
        raise _impossible(wanted, "it needs the C++ operations, which cannot be built here")
    return wanted


def _is_kept(stored: str, device: str, has_native: bool, prefers_plain: bool) -> bool:
    """Whether `auto` keeps a checkpoint's format."""
    facts = FORMATS[stored]
    has_operations = has_native or not facts.needs_native
    return device in facts.kept_by_auto_on and has_operations and not prefers_plain


def _impossible(wanted: str, reason: str) -> ModelLoadError:
    return ModelLoadError(
        f"quantization {wanted} cannot be used: {reason}; use none", param="quantization"
    )


def _wants_async_scheduling(intent: EngineConfig, machine: MachineFacts) -> bool:
    """Whether steps overlap. On a CPU they cannot: a step is over when its launch returns."""
    if intent.async_scheduling == "auto":
        return machine.device == "cuda"
    return intent.async_scheduling == "on"


def _max_step_ratio(intent: EngineConfig, machine: MachineFacts) -> float:
    """The limit on how much longer prompts may make a step. With 2, prompts get as much of a step's
    time as answers do.

    There is none on a GPU unless asked for: steps with prompts were not timed there, and without
    `deterministic` the last bits of a text depend on the size of its chunks and so on the clock.
    """
    is_auto = intent.max_step_ms is None
    return AUTO_STEP_RATIO if is_auto and machine.device == "cpu" else 0.0


def pool_bytes(intent: EngineConfig, model: ModelFacts, machine: MachineFacts) -> int:
    """The most bytes of the pool. On a CPU at most 4 GiB by default, as others use the memory,
    too."""
    if intent.kv_cache_memory_gib is not None:
        return int(intent.kv_cache_memory_gib * GIB)
    if machine.device == "cuda":
        usable = int(machine.free_memory_bytes * intent.gpu_memory_utilization)
        return max(0, usable - model.weight_bytes - model.step_bytes)
    return max(0, min(4 * GIB, (machine.free_memory_bytes - model.weight_bytes) // 2))


def _max_idle_cached_blocks(
    intent: EngineConfig, machine: MachineFacts, num_kv_blocks: int, block_bytes: int
) -> int:
    if not intent.enable_prefix_caching:
        return 0
    if intent.prefix_cache_memory_gib is not None:
        return min(num_kv_blocks, int(intent.prefix_cache_memory_gib * GIB) // block_bytes)
    return num_kv_blocks if machine.device == "cuda" else max(1, num_kv_blocks // 8)
