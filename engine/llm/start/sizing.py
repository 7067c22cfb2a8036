"""Sizes a text model for its device: its weights, what comes beside them, and the KV pool."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from engine.contract.host import Host
from engine.contract.knob import GIB
from engine.contract.kv_numbers import KvNumbers
from engine.contract.resolved_config import MachineFacts, ResolvedConfig
from engine.contract.text_settings import TextSettings
from engine.errors import InsufficientMemory, ModelLoadError
from engine.llm.runner.runner_factory import create_runner
from engine.llm.start.draft_loading import LoadedDraft
from engine.llm.start.memory_plan import MemoryPlan
from engine.llm.start.step_memory import measure_step_memory
from engine.models.adapters import Adapters
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.planning.draft import DraftPlan, plan_draft
from engine.planning.facts import state_bytes, text_facts
from engine.planning.process_bytes import structure_bytes
from engine.planning.shortage import shortage_hint
from engine.planning.step_bytes import step_bytes
from engine.runtime.device_memory import CudaMemory
from engine.weights.source import Checkpoint
from engine.weights.weight_plan import WeightPlan, plan_within_memory
from kernels import native, paged_attention
from kernels.paged_attention.paged_batch import WIDEST_IN_TRITON


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """What is decided before any weight is read."""

    plan: WeightPlan
    draft: DraftPlan | None
    memory: MemoryPlan
    machine: MachineFacts
    adapter_bytes: int
    """The memory left free for adapters, which ask for it as they are loaded."""
    config: ResolvedConfig
    """The configuration; on a GPU it holds only until the steps are measured."""


def sized(
    checkpoint: Checkpoint,
    model_config: ModelConfig,
    intent: TextSettings,
    machine: MachineFacts,
    host: Host,
) -> Sizing:
    """Ask for the weights' memory, and on a CPU also for the KV pool's.

    Raises:
        ModelLoadError: one of its kinds.
    """
    adapter_bytes = intent.adapter_bytes or 0
    with explained_shortage(checkpoint, model_config, intent, machine):
        plan, memory = planned(checkpoint, model_config, intent, machine, host)
        left = memory.beside(adapter_bytes).machine_beside
        draft = plan_draft(checkpoint, model_config, intent, left)
        if draft is not None:
            memory = memory.with_draft(draft, host)
        memory = memory.beside(adapter_bytes)
        config = memory.resolved()
        check_kv_cache_dtype(config, model_config.widest_head)
        if config.device == "cpu":
            memory = memory.with_steps(reserve_work(model_config, intent, machine, host))
            config = memory.resolved()
            memory.reserve_pool(config, host)
    return Sizing(
        plan=plan,
        draft=draft,
        memory=memory,
        machine=machine,
        adapter_bytes=adapter_bytes,
        config=config,
    )


def reserve_work(
    model_config: ModelConfig, intent: TextSettings, machine: MachineFacts, host: Host
) -> int:
    """Ask for the memory that a model's steps and structures take on a CPU; returns its bytes.

    Raises:
        InsufficientMemory: there is too little.
    """
    steps = step_bytes(model_config, intent)
    structures = structure_bytes(model_config.vocab_size)
    host.reserve(machine.device, "steps", steps, machine.free_memory_bytes)
    host.reserve(machine.device, "structures", structures, machine.free_memory_bytes)
    return steps + structures


@contextmanager
def explained_shortage(
    checkpoint: Checkpoint, model_config: ModelConfig, intent: TextSettings, machine: MachineFacts
) -> Iterator[None]:
    """If a model does not fit, tell the operator which formats of it would.

    How much memory other models hold is not known here; the message names those models.
    """
    try:
        yield
    except InsufficientMemory as error:
        if error.hint is None:
            longest = model_config.max_position_embeddings
            hints = [shortage_hint(checkpoint, intent, machine, longest)]
            if states := state_bytes(model_config, intent):
                hints.append(
                    f"{states / GIB:.2f} GiB of the weights are recurrent states of "
                    f"{intent.max_num_seqs} texts; a lower max_num_seqs needs less"
                )
            error.hint = "\n".join(filter(None, hints)) or None
        raise


def check_kv_cache_dtype(config: ResolvedConfig, widest_head: int) -> None:
    """Refuse a packed KV cache that only the reference code could read.

    Raises:
        ModelLoadError: no fast operation on this machine reads a packed cache.
    """
    if not KvNumbers(config.kv_cache_dtype).is_packed:
        return
    if config.device == "cuda":
        is_possible, missing = "triton" in paged_attention.implementations(), "Triton"
        if widest_head > WIDEST_IN_TRITON:
            raise ModelLoadError(
                f"kv_cache_dtype {config.kv_cache_dtype} needs heads of at most "
                f"{WIDEST_IN_TRITON} numbers on a GPU; this model's have {widest_head}; "
                f"set kv_cache_dtype to auto",
                param="kv_cache_dtype",
            )
    else:
        is_possible, missing = native.library() is not None, "the C++ operations"
    if not is_possible:
        raise ModelLoadError(
            f"kv_cache_dtype {config.kv_cache_dtype} needs {missing}, which this machine does not "
            f"have; set kv_cache_dtype to auto",
            param="kv_cache_dtype",
        )


def planned(
    checkpoint: Checkpoint,
    model_config: ModelConfig,
    intent: TextSettings,
    machine: MachineFacts,
    host: Host,
) -> tuple[WeightPlan, MemoryPlan]:
    """Plan how weights are kept, and the memory for them.

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
    intent: TextSettings,
    machine: MachineFacts,
    host: Host,
) -> MemoryPlan:
    """Ask for the weights' memory; what is left decides the rest of the plan."""
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
    """Measure the steps on a GPU, and return the configuration whose pool leaves the largest step
    enough memory."""
    config = memory.resolved()
    device = CudaMemory(torch.device(config.device))
    # The measured steps use one block for everything.
    smallest = replace(config, num_kv_blocks=1)
    runner = create_runner(model, model_config, smallest, adapters)
    steps = measure_step_memory(runner, device, config, model_config.pictures).total
    del runner
    if draft is not None:
        runner = draft.runner(smallest, model_config)
        steps += measure_step_memory(runner, device, config).total
        del runner
    host.reserve(config.device, "steps", steps, memory.machine.free_memory_bytes)
    return memory.with_steps(steps).resolved()
