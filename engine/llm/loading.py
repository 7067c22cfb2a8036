"""From a model reference to an engine that can step: fetch, size, load, warm up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial

import structlog
import torch

from engine.config import EngineConfig, MachineFacts, ResolvedConfig
from engine.errors import InsufficientMemory, ModelLoadError
from engine.fault import sizes_within_memory
from engine.host import Host
from engine.kv_numbers import KvNumbers
from engine.llm.draft_loading import LoadedDraft, load_draft
from engine.llm.drafter import Drafter
from engine.llm.engine import LLMEngine
from engine.llm.executor import LocalExecutor
from engine.llm.forced_drafts import ForcedDrafts
from engine.llm.known_quality import checked_quality
from engine.llm.memory_plan import MemoryPlan
from engine.llm.runner_factory import create_runner
from engine.llm.scheduler import Scheduler
from engine.llm.speculation import Speculation
from engine.llm.step_memory import measure_step_memory
from engine.llm.structure.grammars import Grammars
from engine.llm.structure.reader_process import ReaderProcess
from engine.llm.structure.token_table import load_token_table
from engine.lora.shelf import AdapterLimits
from engine.lora.table import load_adapters
from engine.models.adapters import Adapters
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.planning.draft import plan_draft
from engine.planning.facts import text_facts
from engine.planning.shortage import shortage_hint
from engine.runtime.device import machine_facts, torch_dtype
from engine.runtime.device_memory import CudaMemory
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.types import DrafterName, ModelInfo, Phase
from engine.weights.decoder import load_decoder
from engine.weights.loader import load_model_config
from engine.weights.source import Checkpoint
from engine.weights.stored_bits import FEW_BITS
from engine.weights.weight_plan import WeightPlan, plan_within_memory
from kernels import native, paged_attention

log = structlog.get_logger(__name__)


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: EngineConfig, host: Host
) -> tuple[LLMEngine, ModelInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: one of its kinds; the message is fit for clients.
    """
    started_s = time.monotonic()
    model_config = load_model_config(checkpoint).within(intent.max_model_len)
    machine = machine_facts(intent.device)
    if machine.device == "cpu":
        build_operations(host)
    with explained_shortage(checkpoint, model_config, intent, machine):
        plan, memory = planned(checkpoint, model_config, intent, machine, host)
        adapter_bytes = intent.adapter_bytes or 0
        is_packed = intent.has_packed_adapters(machine.device, plan.quantization)
        left = memory.beside(adapter_bytes).machine_beside
        draft_plan = plan_draft(checkpoint, model_config, intent, left)
        if draft_plan is not None:
            memory = memory.with_draft(draft_plan, host)
        memory = memory.beside(adapter_bytes)  # asked for as they come: what is free has them still
        config = memory.resolved()
        check_kv_cache_dtype(config)
        if config.device == "cpu":
            memory.reserve_pool(config, host)
    quality = checked_quality(checkpoint, config, intent.max_kl)
    limit_threads(config.num_threads)
    tokens = (checkpoint.path, model_config.vocab_size, model_config.eos_token_ids)
    reader = ReaderProcess(*tokens)
    grammars = Grammars(partial(load_token_table, *tokens), reader.read)
    # While the weights are read, so that no request waits for what structures need.
    reader.start()
    grammars.warm_up()
    with sizes_within_memory():
        model = load_decoder(
            checkpoint,
            plan,
            model_config,
            host,
            dtype=torch_dtype(config.dtype),
            device=torch.device(config.device),
            deterministic=config.deterministic,
        )
    draft = None if draft_plan is None else load_draft(draft_plan, config, host)
    limits = AdapterLimits(
        max_adapters=intent.max_adapters,
        max_slots=intent.max_adapter_slots,
        max_bytes=intent.adapter_bytes,
        capacity_bytes=machine.free_memory_bytes,
    )
    adapters = load_adapters(intent.adapters, model, host, limits, is_packed=is_packed)
    host.report(Phase.WARMING_UP)
    if config.device == "cuda":
        loaded_bytes = 0 if adapters is None else adapters.num_bytes
        memory = memory.beside(max(0, loaded_bytes - adapter_bytes))
        with explained_shortage(checkpoint, model_config, intent, machine):
            config = measured(model, model_config, memory, host, adapters, draft)
            memory.reserve_pool(config, host)
    runner = create_runner(model, model_config, config, adapters, grammars)
    runner.warm_up()
    scheduler = Scheduler(
        config,
        eos_token_ids=model_config.eos_token_ids,
        vocab_size=model_config.vocab_size,
        windows=model_config.group_windows,
        drafters=drafters(config, model_config, draft),
    )
    engine = LLMEngine(scheduler, LocalExecutor(runner), config, adapters=adapters)
    log.info(
        "model loaded",
        seconds=round(time.monotonic() - started_s, 1),
        **asdict(config),
    )
    if plan.stored_bits is not None and plan.stored_bits < FEW_BITS:
        log.warning(
            "the weights have fewer than 4 bits each, which can cost much more for digits, code, "
            "rare words or some languages than on average; measure it with tandem perplexity "
            "--against the original",
            bits=round(plan.stored_bits, 2),
        )
    info = model_info(model_id, checkpoint, model_config, config)
    if quality is not None:
        info = replace(info, quality_kl=quality.kl_divergence)
    if adapters is not None:
        info = replace(info, adapters=adapters.names, failed_adapters=adapters.failed)
    return engine, info


def drafters(
    config: ResolvedConfig, model_config: ModelConfig, draft: LoadedDraft | None
) -> dict[DrafterName, Drafter]:
    """Those that are sure first, then those that cost least."""
    found: dict[DrafterName, Drafter] = {DrafterName.FORCED: ForcedDrafts()}
    if config.num_speculative_tokens:
        found[DrafterName.LOOKUP] = Speculation(config)
    if draft is not None:
        found[DrafterName.MODEL] = draft.drafter(config, model_config)
    return found


@contextmanager
def explained_shortage(
    checkpoint: Checkpoint, model_config: ModelConfig, intent: EngineConfig, machine: MachineFacts
) -> Iterator[None]:
    """Tell the operator of a model that does not fit which ways to keep it would.

    What other models hold is not free, but it is not known here: the message says who they are.
    """
    try:
        yield
    except InsufficientMemory as error:
        longest = model_config.max_position_embeddings
        error.hint = shortage_hint(checkpoint, intent, machine, longest)
        raise


def check_kv_cache_dtype(config: ResolvedConfig) -> None:
    """
    Raises:
        ModelLoadError: nothing here reads a packed cache, but what is written for reading.
    """
    if not KvNumbers(config.kv_cache_dtype).is_packed:
        return
    if config.device == "cuda":
        is_possible, missing = "triton" in paged_attention.implementations(), "Triton"
    else:
        is_possible, missing = native.library() is not None, "the C++ operations"
    if not is_possible:
        raise ModelLoadError(
            f"kv_cache_dtype {config.kv_cache_dtype} was asked for: it needs {missing}, which this "
            f"machine does not have; use auto",
            param="kv_cache_dtype",
        )


def planned(
    checkpoint: Checkpoint,
    model_config: ModelConfig,
    intent: EngineConfig,
    machine: MachineFacts,
    host: Host,
) -> tuple[WeightPlan, MemoryPlan]:
    """How weights are kept, with the memory for it.

    Raises:
        ModelLoadError: one of its kinds.
    """
    return plan_within_memory(
        checkpoint,
        model_config,
        intent,
        machine,
        reserve=lambda plan: reserve_weights(plan, model_config, intent, machine, host),
    )


def reserve_weights(
    plan: WeightPlan,
    model_config: ModelConfig,
    intent: EngineConfig,
    machine: MachineFacts,
    host: Host,
) -> MemoryPlan:
    """Ask for the weights' memory; the rest is planned by what is left."""
    model = text_facts(plan, model_config, intent)
    weights = model.weight_bytes
    free = host.reserve(machine.device, "weights", weights, machine.free_memory_bytes)
    return MemoryPlan(
        replace(intent, quantization=plan.quantization),
        model,
        replace(machine, free_memory_bytes=free + weights),
    )


def measured(
    model: CausalLM,
    model_config: ModelConfig,
    memory: MemoryPlan,
    host: Host,
    adapters: Adapters | None = None,
    draft: LoadedDraft | None = None,
) -> ResolvedConfig:
    """The configuration of a GPU, whose pool leaves the largest step the memory that it takes."""
    config = memory.resolved()
    device = CudaMemory(torch.device(config.device))
    # Its steps use one block for everything.
    smallest = replace(config, num_kv_blocks=1)
    runner = create_runner(model, model_config, smallest, adapters)
    steps = measure_step_memory(runner, device, config).total
    del runner
    if draft is not None:
        runner = draft.runner(smallest, model_config)
        steps += measure_step_memory(runner, device, config).total
        del runner
    host.reserve(config.device, "steps", steps, memory.machine.free_memory_bytes)
    return replace(memory, model=replace(memory.model, step_bytes=steps)).resolved()


def model_info(
    model_id: str, checkpoint: Checkpoint, model_config: ModelConfig, config: ResolvedConfig
) -> ModelInfo:
    """What the server checks requests against and shows to clients."""
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
