"""The operator's settings. `engine.contract.resolved_config` resolves them on a machine.

Nothing here reads the environment; `server/settings/settings.py` does, and builds an
`EngineConfig`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from engine.contract.gpus import is_device
from engine.contract.sampling_values import checked
from engine.errors import InvalidParameter, ModelLoadError

Quantization = Literal[
    "auto",
    "none",
    "gguf",
    "gguf-int8",
    "gptq",
    "awq",
    "bitsandbytes",
    "compressed-tensors",
    "fp8",
    "int8",
    "int8-weights",
    "int4",
    "bnb-nf4",
    "bnb-fp4",
    "bnb-int8",
]
"""The values of `--quantization`, for text models."""
ImageQuantization = Literal["none", "int8-weights", "int4", "bnb-nf4", "bnb-fp4", "bnb-int8"]
"""The values of `--image-quantization`: formats made from plain weights. Formats of files need no
setting."""
ToolCallParserName = Literal[
    "hermes", "qwen3_coder", "llama3_json", "mistral", "gemma4", "functiongemma", "json"
]
"""Names of the parsers, the same as vLLM's where vLLM has the parser."""
ReasoningParserName = Literal["deepseek_r1", "qwen3", "mistral", "gemma4"]
ToolCallParserSetting = Literal["auto", ToolCallParserName]
ReasoningParserSetting = Literal["auto", "none", ReasoningParserName]
Device = str
"""`auto`, `cpu`, `cuda` or `cuda:N` (`engine.contract.gpus`)."""
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
