"""Turns a checkpoint into a running engine: sizes it, loads it and warms it up."""

import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import structlog
import torch

from engine.contract.fingerprint import fingerprint
from engine.contract.generate import DrafterName, ModelInfo
from engine.contract.host import Host
from engine.contract.knob import GIB
from engine.contract.kv_events_config import KvEventsConfig
from engine.contract.resolved_config import ResolvedConfig
from engine.contract.status import Phase
from engine.contract.text_settings import TextSettings
from engine.llm.cache.cache_journal import CacheJournal
from engine.llm.drafts.drafter import Drafter
from engine.llm.drafts.forced_drafts import ForcedDrafts
from engine.llm.drafts.speculation import Speculation
from engine.llm.embeddings import EngineWithEmbeddings, with_embeddings
from engine.llm.engine import LLMEngine
from engine.llm.kept_states import KeptStates
from engine.llm.runner.runner_factory import create_runner
from engine.llm.scheduler import Scheduler
from engine.llm.start.block_store import computed_by, create_store, open_files
from engine.llm.start.block_transfer import create_transfer, open_address
from engine.llm.start.draft_loading import LoadedDraft, load_draft
from engine.llm.start.known_quality import checked_quality
from engine.llm.start.ranked_executor import RankedExecutor
from engine.llm.start.ranks import Ranks, check_ranks
from engine.llm.start.sizing import Sizing, explained_shortage, measured, sized
from engine.llm.structure.grammars import Grammars
from engine.llm.structure.reader_process import ReaderProcess
from engine.llm.structure.token_table import load_token_table
from engine.lora.loaded_adapters import AdapterLimits
from engine.lora.text_adapters import TextAdapters, load_adapters
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.layers.parallel import SINGLE, TensorParallel
from engine.quantization.kept_panels import kept_by
from engine.runtime.device import machine_facts, torch_dtype
from engine.runtime.fault import sizes_within_memory
from engine.runtime.operations import build_operations
from engine.runtime.threads import limit_threads
from engine.weights.decoder import load_decoder
from engine.weights.default_sampling import default_sampling
from engine.weights.loader import load_model_config
from engine.weights.mmproj import with_mmproj
from engine.weights.panel_file import PanelFile
from engine.weights.source import Checkpoint
from engine.weights.stored_bits import FEW_BITS
from engine.weights.weight_plan import WeightPlan
from kernels import native
from kernels.cache_folder import cache_folder

log = structlog.get_logger(__name__)


def load_engine(
    checkpoint: Checkpoint, model_id: str, intent: TextSettings, host: Host
) -> tuple[EngineWithEmbeddings, ModelInfo]:
    """Load a checkpoint and serve it as `model_id`.

    Raises:
        ModelLoadError: one of its kinds; the message is fit for clients.
    """
    started_s = time.monotonic()
    checkpoint = with_mmproj(checkpoint, intent.mmproj)
    model_config = load_model_config(checkpoint).within(intent.max_model_len)
    sampling = default_sampling(
        model_config.generation, intent.generation_config, intent.override_generation_config
    )
    files = open_files(intent, model_config)
    opened = open_address(intent, model_config)
    machine = machine_facts(intent.device)
    if machine.device == "cpu":
        build_operations(host)
    check_ranks(model_config, intent, machine)
    sizing = sized(checkpoint, model_config, intent, machine, host)
    quality = checked_quality(checkpoint, sizing.config, intent.max_kl)
    limit_threads(sizing.config.num_threads)
    grammars = grammars_of(checkpoint, model_config)
    config = sizing.config
    ranks = Ranks(checkpoint, intent, sizing) if config.tensor_parallel_size > 1 else None
    parallel = SINGLE if ranks is None else ranks.parallel
    weights = load_weights(checkpoint, model_config, intent, sizing, host, parallel)
    host.report(Phase.WARMING_UP)
    if config.device == "cuda":
        with explained_shortage(checkpoint, model_config, intent, machine):
            config = sized_pool(weights, model_config, sizing, host)
    runner = create_runner(weights.model, model_config, config, weights.adapters, grammars)
    if ranks is not None:
        ranks.meet()
    runner.warm_up()
    store = transfer = None
    if files is not None or opened is not None:
        made_by = computed_by(config, model_config, sizing.plan, checkpoint)
        if files is not None:
            store = create_store(files, runner.kv, intent, made_by)
        if opened is not None:
            transfer = create_transfer(opened, runner.kv, intent, config, made_by)
    journal = None
    if config.enable_prefix_caching and KvEventsConfig.read(intent.kv_events_config):
        journal = CacheJournal(config.block_size, model_config.group_windows)
    scheduler = Scheduler(
        config,
        eos_token_ids=model_config.eos_token_ids,
        vocab_size=model_config.vocab_size,
        never_token_ids=model_config.never_token_ids,
        windows=model_config.group_windows,
        drafters=drafters(config, model_config, weights.draft),
        states=kept_states(model_config, config),
        store=store,
        loans=None if transfer is None else transfer.loans,
        journal=journal,
    )
    executor = runner if ranks is None else RankedExecutor(runner, ranks)
    engine = LLMEngine(
        scheduler, executor, config, adapters=weights.adapters, store=store, transfer=transfer
    )
    seconds = round(time.monotonic() - started_s, 1)
    log.info("model loaded", seconds=seconds, default_sampling=sampling, **asdict(config))
    warn_of_few_bits(sizing.plan)
    info = replace(
        model_info(model_id, checkpoint, model_config, config, sampling),
        shares_kv=store is not None or transfer is not None,
        num_weights=sizing.plan.num_weights,
        weight_type=sizing.plan.stored_type,
    )
    if quality is not None:
        info = replace(info, quality_kl=quality.kl_divergence)
    if weights.adapters is not None:
        adapters = weights.adapters
        info = replace(
            info,
            adapters=adapters.names,
            adapter_digests=adapters.digests,
            failed_adapters=adapters.failed,
        )
    both = with_embeddings(engine, info, weights.model, config, machine, host)
    # The other ranks take part in steps of texts alone, so such a model offers no embeddings.
    return both if ranks is None else (both[0], info)


def grammars_of(checkpoint: Checkpoint, model_config: ModelConfig) -> Grammars:
    """The grammars of a model. What they need is prepared when the model is idle, or when the first
    structure is requested, so that no start waits for it."""
    tokens = (checkpoint.path, model_config.vocab_size, model_config.eos_token_ids)
    reader = ReaderProcess(*tokens)
    return Grammars(partial(load_token_table, *tokens), reader.read, reader.start)


@dataclass(frozen=True, slots=True)
class LoadedWeights:
    """Everything that is read from files for a served model."""

    model: CausalLM
    draft: LoadedDraft | None
    adapters: TextAdapters | None


def load_weights(
    checkpoint: Checkpoint,
    model_config: ModelConfig,
    intent: TextSettings,
    sizing: Sizing,
    host: Host,
    parallel: TensorParallel = SINGLE,
) -> LoadedWeights:
    """Read the model, its draft model and its adapters.

    Args:
        parallel: the rank whose share is read.

    Raises:
        ModelLoadError: one of its kinds.
    """
    config = sizing.config
    panels = None
    if config.device == "cpu" and intent.panel_file_gib and native.library() is not None:
        rank = f"rank {parallel.rank} of {parallel.size}"
        panels = PanelFile(
            cache_folder().with_name("panels"),
            int(intent.panel_file_gib * GIB),
            checkpoint,
            (config.quantization, config.dtype, rank),
        )
    with sizes_within_memory(), kept_by(panels):
        model = load_decoder(
            checkpoint,
            sizing.plan,
            model_config,
            host,
            dtype=torch_dtype(config.dtype),
            device=torch.device(config.device),
            deterministic=config.deterministic,
            parallel=parallel,
        )
    if panels is not None:
        panels.write_later()
    if parallel.size > 1:
        return LoadedWeights(model, None, None)
    draft = None if sizing.draft is None else load_draft(sizing.draft, config, host)
    adapters = load_adapters(
        intent.adapters,
        model,
        host,
        AdapterLimits.of(intent, sizing.machine),
        is_packed=intent.has_packed_adapters(config.device, sizing.plan.quantization),
    )
    return LoadedWeights(model, draft, adapters)


def sized_pool(
    weights: LoadedWeights, model_config: ModelConfig, sizing: Sizing, host: Host
) -> ResolvedConfig:
    """Measure the steps on a GPU, size the KV pool and ask for its memory."""
    loaded_bytes = 0 if weights.adapters is None else weights.adapters.num_bytes
    memory = sizing.memory.beside(max(0, loaded_bytes - sizing.adapter_bytes))
    config = measured(weights.model, model_config, memory, host, weights.adapters, weights.draft)
    memory.reserve_pool(config, host)
    return config


def warn_of_few_bits(plan: WeightPlan) -> None:
    if plan.stored_bits is not None and plan.stored_bits < FEW_BITS:
        log.warning(
            "the weights have fewer than 4 bits each, which can cost much more for digits, code, "
            "rare words or some languages than on average; measure it with tandem perplexity "
            "--against the original",
            bits=round(plan.stored_bits, 2),
        )


def drafters(
    config: ResolvedConfig, model_config: ModelConfig, draft: LoadedDraft | None
) -> dict[DrafterName, Drafter]:
    """Create the drafters: those that are certain first, then the cheapest ones."""
    found: dict[DrafterName, Drafter] = {DrafterName.FORCED: ForcedDrafts()}
    if config.num_speculative_tokens:
        found[DrafterName.LOOKUP] = Speculation(config)
    if draft is not None:
        found[DrafterName.MODEL] = draft.drafter(config, model_config)
    return found


def kept_states(model_config: ModelConfig, config: ResolvedConfig) -> KeptStates | None:
    """Create what keeps the states of pictures; None if the model takes none."""
    pictures = model_config.pictures
    if pictures is None:
        return None
    most = pictures.num_kept(model_config.state_size * torch_dtype(config.dtype).itemsize)
    vision = model_config.vision
    if vision is None or config.device != "cpu":
        return KeptStates(most, pictures)
    return KeptStates(most, pictures, vision.num_slices)


def model_info(
    model_id: str,
    checkpoint: Checkpoint,
    model_config: ModelConfig,
    config: ResolvedConfig,
    sampling: dict[str, float],
) -> ModelInfo:
    """Describe the model for the server, which checks requests against this and shows it to
    clients."""
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
        max_idle_blocks=config.max_idle_cached_blocks,
        eos_token_ids=model_config.eos_token_ids,
        default_sampling=sampling,
        pictures=model_config.pictures,
        config_hash=fingerprint((config.fingerprint(), sorted(sampling.items()))),
    )
