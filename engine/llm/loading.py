"""From a model reference to an engine that can step: fetch, size, load, warm up."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Protocol

import structlog
import torch

from engine.config import EngineConfig, ModelFacts, ResolvedConfig, resolve
from engine.errors import ModelLoadError
from engine.llm.cuda_graph import CudaRecorder
from engine.llm.engine import LLMEngine
from engine.llm.executor import LocalExecutor
from engine.llm.model_runner import ModelRunner
from engine.llm.scheduler import Scheduler
from engine.models.config import ModelConfig
from engine.models.registry import create_model
from engine.runtime.device import machine_facts, torch_dtype
from engine.runtime.huge_pages import use_huge_pages
from engine.runtime.threads import limit_threads
from engine.types import ModelInfo, Phase
from engine.weights.loader import iter_weights, load_model_config, weight_bytes
from engine.weights.source import Checkpoint
from kernels import native, paged_attention

REPORT_EVERY_S = 0.2

log = structlog.get_logger(__name__)


class Host(Protocol):
    """Whom a loading engine reports to and asks for memory."""

    def report(
        self, phase: Phase, progress: float | None = None, detail: str | None = None
    ) -> None:
        """Say what is going on."""
        ...

    def reserve(self, device: str, purpose: str, num_bytes: int, capacity_bytes: int) -> int:
        """Ask for memory; returns the bytes still free after it. Raises InsufficientMemory."""
        ...


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: EngineConfig, host: Host
) -> tuple[LLMEngine, ModelInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: one of its kinds; the message is fit for clients.
    """
    started_s = time.monotonic()
    model_config = load_model_config(checkpoint)
    num_weights = weight_bytes(checkpoint) // torch.bfloat16.itemsize
    config = reserve_memory(num_weights, model_config, intent, host)
    limit_threads(config.num_threads)
    runner = load_runner(checkpoint, num_weights, model_config, config, host)
    host.report(Phase.WARMING_UP)
    runner.warm_up()
    scheduler = Scheduler(
        config, eos_token_ids=model_config.eos_token_ids, vocab_size=model_config.vocab_size
    )
    engine = LLMEngine(scheduler, LocalExecutor(runner), config)
    log.info(
        "model loaded",
        seconds=round(time.monotonic() - started_s, 1),
        **asdict(config),
    )
    return engine, model_info(model_id, checkpoint, model_config, config)


def reserve_memory(
    num_weights: int, model_config: ModelConfig, intent: EngineConfig, host: Host
) -> ResolvedConfig:
    """Ask for the weights' memory, size the KV pool by what is left, ask for that too."""
    machine = machine_facts(intent.device)
    dtype_bytes = 4 if intent.dtype == "float32" else 2
    weights = num_weights * dtype_bytes
    free = host.reserve(machine.device, "weights", weights, machine.free_memory_bytes)
    model = ModelFacts(
        max_position_embeddings=model_config.max_position_embeddings,
        kv_bytes_per_token=model_config.kv_bytes_per_token(dtype_bytes),
        weight_bytes=weights,
    )
    config = resolve(intent, model, replace(machine, free_memory_bytes=free + weights))
    pool = config.num_kv_blocks * config.block_size * model.kv_bytes_per_token
    host.reserve(machine.device, "KV cache", pool, machine.free_memory_bytes)
    return config


def load_runner(
    checkpoint: Checkpoint,
    num_weights: int,
    model_config: ModelConfig,
    config: ResolvedConfig,
    host: Host,
) -> ModelRunner:
    """Build the model and fill its weights, reporting how far it is."""
    device = torch.device(config.device)
    if config.device == "cpu":
        if not native.is_built():
            host.report(Phase.LOADING, 0.0, "compiling the CPU operations, once on this machine")
        native.library()
    elif config.deterministic:
        check_determinism()
    model = create_model(
        model_config,
        dtype=torch_dtype(config.dtype),
        device=device,
        deterministic=config.deterministic,
    )
    weights = iter_weights(checkpoint, model_config)
    unexpected = model.load_weights(counted(weights, num_weights, host))
    if unexpected:
        log.warning("the checkpoint has tensors that the model does not use", names=unexpected)
    if config.device == "cpu":
        use_huge_pages()
    recorder = CudaRecorder(device) if config.cuda_graphs else None
    return ModelRunner(model, model_config, config, device, recorder=recorder)


def check_determinism() -> None:
    """
    Raises:
        ModelLoadError: this GPU would run attention whose bits depend on the batch.
    """
    if "triton" not in paged_attention.implementations():
        raise ModelLoadError(
            "deterministic text on a GPU needs Triton; install tandem-server[gpu] or leave "
            "deterministic off"
        )


def counted(
    weights: Iterator[tuple[str, torch.Tensor]], total: int, host: Host
) -> Iterator[tuple[str, torch.Tensor]]:
    """Pass the weights on and report the share of elements that went by."""
    seen, reported_s = 0, 0.0
    for name, tensor in weights:
        yield name, tensor
        seen += tensor.numel()
        if time.monotonic() - reported_s > REPORT_EVERY_S:
            reported_s = time.monotonic()
            host.report(Phase.LOADING, min(1.0, seen / max(1, total)))


def model_info(
    model_id: str, checkpoint: Checkpoint, model_config: ModelConfig, config: ResolvedConfig
) -> ModelInfo:
    """What the server must know."""
    return ModelInfo(
        model=model_id,
        path=str(checkpoint.path),
        architecture=model_config.architecture,
        max_model_len=config.max_model_len,
        vocab_size=model_config.vocab_size,
        dtype=config.dtype,
        created=int(time.time()),
        num_kv_blocks=config.num_kv_blocks,
        kv_block_size=config.block_size,
        eos_token_ids=model_config.eos_token_ids,
        default_sampling=dict(model_config.generation),
        config_hash=config.fingerprint(),
    )
