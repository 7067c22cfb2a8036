"""The settings of models that read tokens: those that write text, and those that embed it."""

from dataclasses import dataclass
from typing import Any, Literal

from engine.contract.adapter_settings import AdapterSettings
from engine.contract.knob import GIB, knob
from engine.contract.kv_events_config import KvEventsConfig
from engine.contract.sampling_values import checked
from engine.contract.worker_settings import DType, WorkerSettings
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
    "mxfp4",
    "auto-round",
    "torchao",
    "quanto",
    "hqq",
    "int8",
    "int8-weights",
    "int4",
    "bnb-nf4",
    "bnb-fp4",
    "bnb-int8",
]
"""The values of `--quantization`, for text models."""
ToolCallParserName = Literal[
    "hermes",
    "qwen3_coder",
    "llama3_json",
    "mistral",
    "gemma4",
    "functiongemma",
    "harmony",
    "json",
]
"""Names of the parsers, the same as vLLM's where vLLM has the parser."""
ReasoningParserName = Literal["deepseek_r1", "qwen3", "mistral", "gemma4", "harmony"]
ToolCallParserSetting = Literal["auto", ToolCallParserName]
ReasoningParserSetting = Literal["auto", "none", ReasoningParserName]
KvCacheDType = Literal["auto", "int8", "fp8"]
LoraDType = Literal["auto", "model", "int8"]
AsyncScheduling = Literal["auto", "on", "off"]
OptimizeFor = Literal["throughput", "latency"]


@dataclass(frozen=True, kw_only=True)
class TokenSettings(WorkerSettings):
    """How weights are kept, and how many tokens and texts a step has."""

    dtype: DType = knob(
        "auto",
        "Data type of weights and activations; auto means bfloat16, or float32 for encoders, "
        "which make embeddings.",
    )
    quantization: Quantization = knob(
        "auto",
        "How the weights of linear layers are stored. auto: as in the checkpoint, unless plain "
        "weights were measured to be faster on this CPU and fit into memory. none: plain, in "
        "dtype. gguf, gptq, awq, bitsandbytes, compressed-tensors, fp8, mxfp4, auto-round, "
        "torchao, quanto, hqq: packed as in the checkpoint, which takes less memory for the same "
        "results. Quantized at load: int8-weights and int4 in groups of 32; bnb-nf4, bnb-fp4 and "
        "bnb-int8 as bitsandbytes does. Faster but less precise, on CPUs with VNNI: int8 rounds "
        "any weights to 8 bits at load, and activations in each step; gguf-int8 rounds only the "
        "activations of a GGUF file.",
    )
    optimize_for: OptimizeFor = knob(
        "throughput",
        "What a text model with quantized weights does fastest on a CPU with a matrix unit (AMX). "
        "throughput: prompts, and many requests at once. latency: the tokens of one request, "
        "computed without the matrix unit, while prompts take about twice as long. The two "
        "round differently, so answers may differ. Elsewhere both are the same.",
    )
    max_model_len: int | None = knob(
        None,
        "Maximum length of prompt plus output, in tokens; by default what the model was trained "
        "for.",
        ge=1,
    )
    max_num_seqs: int = knob(64, "Maximum number of sequences in one step.", ge=1)
    max_num_batched_tokens: int = knob(
        512, "Token budget of one step, for prompts and decodes together.", ge=1
    )

    @property
    def model_dtype(self) -> Literal["bfloat16", "float16", "float32"]:
        """The type of weights and activations; `auto` is bfloat16."""
        return "bfloat16" if self.dtype == "auto" else self.dtype


@dataclass(frozen=True, kw_only=True)
class TextSettings(TokenSettings, AdapterSettings):
    """How a model writes text."""

    max_kl: float | None = knob(
        None,
        "Refuse a text model whose measured KL divergence from its original is larger than this, "
        "in nats. The divergence is known for models measured with tandem perplexity --save; "
        "others are served with a warning.",
        ge=0.0,
    )
    tool_call_parser: ToolCallParserSetting = knob(
        "auto",
        "How tool calls are parsed from a text model's answers. auto: chosen by its chat "
        "template. json: JSON objects with a name and arguments.",
    )
    reasoning_parser: ReasoningParserSetting = knob(
        "auto",
        "How a text model's reasoning is separated from its answer. auto: chosen by its chat "
        "template. none: it stays in the answer. deepseek_r1: an answer begins with reasoning "
        "even without an opening tag.",
    )
    generation_config: str = knob(
        "auto",
        "Where a text model's default sampling parameters come from. auto: its authors' "
        "recommendation, from generation_config.json, the metadata of a GGUF file or, for some "
        "models, a built-in table. none: temperature 1 and nothing else. PATH: another "
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
    max_step_ms: float | None = knob(
        None,
        "Target duration of a step that includes prompts while others are being answered, in "
        "milliseconds: prompts are split so that the time between tokens stays below it; 0 means "
        "no limit. By default, on a CPU, three times the duration of the same step without "
        "prompts, but at least 25 ms; on a GPU no limit.",
        ge=0.0,
        le=3_600_000.0,
    )
    block_size: int = knob(16, "Tokens in a KV block.", ge=1, le=256)
    num_kv_blocks: int | None = knob(
        None, "Size of the KV pool in blocks; by default derived from the memory budget.", ge=1
    )
    kv_cache_memory_gib: float | None = knob(
        None, "Maximum size of the KV pool in GiB; by default a share of the free memory.", ge=0.001
    )
    gpu_memory_utilization: float = knob(
        0.9, "Share of the GPU's memory for weights, activations and KV together.", ge=0.05, le=1.0
    )
    kv_cache_dtype: KvCacheDType = knob(
        "auto",
        "Data type of keys and values in the KV cache. auto: dtype. int8, fp8: one byte each, "
        "with a scale per token and head, so that about twice as many tokens fit; "
        "docs/quantization.md gives the cost in quality.",
    )
    enable_prefix_caching: bool = knob(True, "Reuse the KV blocks of identical prompt prefixes.")
    prefix_cache_memory_gib: float | None = knob(
        None,
        "Maximum memory for cached blocks that no request uses; by default an eighth of the "
        "pool's limit on a CPU, no limit on a GPU or with kv_transfer.",
        ge=0.0,
    )
    kv_store: str | None = knob(
        None,
        "A folder for copies of cached KV blocks, so that prompts are still cached after a "
        "restart. Other servers may share it. Treat its files as confidential: they hold what "
        "clients have written, in another form.",
        form="FOLDER",
        names_files=True,
    )
    kv_store_bytes: int = knob(
        8 * GIB,
        "Maximum size of the files in kv_store, in bytes; the least recently used are deleted "
        "first.",
        ge=1 << 20,
    )
    kv_transfer: str | None = knob(
        None,
        "The address at which other servers fetch KV blocks of prompts from this one, for "
        "requests with kv_transfer_params. Each model and replica uses the first free port from "
        "PORT on, or any free port if PORT is omitted. Needs kv_transfer_key.",
        form="HOST[:PORT]",
        names_files=True,
    )
    kv_transfer_key: str | None = knob(
        None,
        "A file with a secret of at least 32 characters, the same on all servers that exchange KV "
        "blocks.",
        form="FILE",
        names_files=True,
    )
    kv_lease_duration: float = knob(
        30.0,
        "How long the KV blocks of a prompt are kept for another server to fetch, in seconds.",
        ge=1.0,
        le=3600.0,
    )
    kv_events_config: dict[str, Any] | None = knob(
        None,
        "Publish what the prefix cache stores and evicts, for cache-aware routers, over ZeroMQ in "
        "vLLM's format; a JSON object with vLLM's fields: {\"enable_kv_cache_events\": true, "
        '"endpoint": "tcp://*:5557", "replay_endpoint": "tcp://*:5558", "topic": "kv-events"}. '
        "Anyone who can connect there can read prompts. Each text model needs its own addresses; "
        "replicas add their number to the port.",
        form="JSON",
        names_files=True,
    )
    panel_file_gib: float = knob(
        32.0,
        "Maximum size in GiB of the files in cache_dir that hold packed weights in this "
        "processor's layout, which later starts map into memory; the least recently used are "
        "deleted first. 0 keeps none.",
        ge=0.0,
    )
    seed: int | None = knob(None, "Seed for requests that do not send one.")
    async_scheduling: AsyncScheduling = knob(
        "auto",
        "Schedule and launch the next step while the device runs this one; auto: only on a GPU.",
    )
    record_steps: bool = knob(
        True,
        "Replay recorded steps: on a GPU, decode steps as CUDA graphs; on a CPU, most steps as "
        "lists of calls to the C++ operations.",
    )
    mmproj: str | None = knob(
        None,
        "The GGUF file with the vision encoder of a GGUF model, as llama.cpp's --mmproj. By "
        "default the file in the model's folder whose name begins with mmproj.",
        form="FILE",
        names_files=True,
    )
    num_speculative_tokens: int | None = knob(
        None,
        "Maximum number of draft tokens per request and step, from its own text so far (prompt "
        "lookup) or from speculative_model. If drafts are often accepted, a step yields several "
        "tokens; texts stay the same, and under load nothing is drafted. 0 turns it off. By "
        "default 8 on a CPU or with speculative_model, and 0 on a GPU and for models with "
        "recurrent states.",
        ge=0,
        le=64,
    )
    speculative_model: str | None = knob(
        None,
        "A draft model: a second, cheaper text model that drafts tokens when prompt lookup finds "
        "nothing. It must use the same tokens as the model, and may be the same model in fewer "
        "bits. How much it drafts depends on how often its tokens are accepted and how long it "
        "takes.",
        form="MODEL",
        names_files=True,
    )
    speculative_quantization: Quantization = knob(
        "auto",
        "How the weights of the linear layers of speculative_model are stored; the values are "
        "those of quantization.",
    )
    prompt_lookup_min: int = knob(
        3,
        "How many of the last tokens must have occurred before for prompt lookup to draft what "
        "followed them.",
        ge=1,
        le=64,
    )
    prompt_lookup_max: int = knob(
        8,
        "How many tokens are compared to choose between several earlier occurrences.",
        ge=1,
        le=64,
    )
    shared_lookup_tokens: int = knob(
        0,
        "Also draft from finished texts, keeping this many of their most recent tokens (about 200 "
        "bytes each). Only requests with the same cache_salt and adapter share them. 0 turns it "
        "off.",
        ge=0,
        le=1 << 24,
    )
    tensor_parallel_size: int = knob(
        1,
        "Number of processes that compute a text model together, each with its share of the "
        "weights and of the KV cache. CPUs only.",
        ge=1,
        le=64,
    )
    debug_invariants: bool = knob(
        False, "Check the scheduler's invariants after every step (slow)."
    )
    lora_dtype: LoraDType = knob(
        "auto",
        "Data type of a text model's LoRA adapters. model: the model's dtype. int8 (only on a "
        "CPU): reads half as many bytes in each step as bfloat16, with an error below 1% of an "
        "update. auto: int8 on a CPU if the model's own weights are quantized and dtype is not "
        "float32, otherwise model.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            checked(self.override_generation_config or {})
        except InvalidParameter as error:
            raise InvalidParameter(error.message, param="override_generation_config") from None
        KvEventsConfig.read(self.kv_events_config)

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

    @property
    def resolved_kv_cache_dtype(self) -> Literal["bfloat16", "float16", "float32", "int8", "fp8"]:
        """The type of keys and values in the cache; `auto` is that of weights and activations."""
        return self.model_dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype
