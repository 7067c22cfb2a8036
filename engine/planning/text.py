"""Plans text models: memory and speed limits of each format of weights and KV cache.

A step of decodes reads all weights that it multiplies with and every text's keys and values, and a
prompt multiplies each token with all weights of the layers; memory bandwidth and arithmetic limit
the speed of both. Real steps take longer: 60 to 90 % of these limits are usual on GPUs.

Source: Pope et al. 2022, Efficiently Scaling Transformer Inference, arXiv:2211.05102.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from engine.contract.knob import GIB
from engine.contract.kv_numbers import KvNumbers
from engine.contract.resolved_config import kv_layout_of, pool_bytes
from engine.contract.text_settings import KvCacheDType, Quantization, TextSettings
from engine.errors import InvalidParameter, ModelLoadError
from engine.models.config import ModelConfig
from engine.planning.adapters import AdaptersRead, adapter_facts, read_adapters
from engine.planning.chips import Chip
from engine.planning.draft import DraftPlan, plan_draft
from engine.planning.facts import text_facts
from engine.planning.mixture import Mixture, expert_bytes
from engine.planning.process_bytes import structure_bytes
from engine.planning.report import AdapterFacts, ExpertFacts, PlanReport, PlanRow, Target
from engine.planning.step_bytes import step_bytes
from engine.runtime.device import torch_dtype
from engine.weights.loader import load_model_config, weight_headers
from engine.weights.mmproj import with_mmproj
from engine.weights.source import Checkpoint
from engine.weights.weight_plan import WeightPlan, plan_weights
from kernels.paged_attention.paged_batch import WIDEST_IN_TRITON

CACHES: tuple[KvCacheDType, ...] = ("auto", "int8")
"""The compared kinds of cache; fp8 takes as much memory as int8."""


def plan(checkpoint: Checkpoint, intent: TextSettings, target: Target) -> PlanReport:
    """Plan a text model.

    Raises:
        ModelLoadError: its files cannot be used.
        InvalidParameter: texts would be longer than the model takes.
    """
    checkpoint = with_mmproj(checkpoint, intent.mmproj)
    config = load_model_config(checkpoint).within(intent.max_model_len)
    longest = intent.max_model_len or config.max_position_embeddings
    context = longest if target.context is None else target.context
    if context > config.max_position_embeddings:
        raise InvalidParameter(
            f"context is {context}; it may be at most {config.max_position_embeddings}",
            param="context",
        )
    draft = plan_draft(checkpoint, config, intent, target.machine)
    rows: list[PlanRow] = []
    experts: ExpertFacts | None = None
    read: AdaptersRead | None = None
    adapters: AdapterFacts | None = None
    problem: ModelLoadError | None = None
    headers = weight_headers(checkpoint, config)
    for name in get_args(Quantization):
        if name == "auto":
            continue
        of_format = replace(intent, quantization=name)
        try:
            kept = plan_weights(checkpoint, config, of_format, target.machine, headers)
        except ModelLoadError as error:  # this format does not fit the checkpoint or the device
            problem = error
            continue
        read = read or read_adapters(kept, config, intent)
        facts = adapter_facts(read, intent, target.machine.device, kept.quantization)
        # Adapters are planned for the checkpoint's own format, if it is one of ours.
        if adapters is None or kept.quantization == kept.stored:
            adapters = facts
        adapter_bytes = 0 if facts is None else facts.held_bytes
        rows += _rows(kept, config, of_format, target, context, draft, adapter_bytes)
        experts = _expert_facts(Mixture.of(kept, config), target.concurrency)
    if not rows and problem is not None:
        raise problem
    return PlanReport(
        model=checkpoint.name,
        kind="text",
        device=target.device,
        free_bytes=target.machine.free_memory_bytes,
        concurrency=target.concurrency,
        context=context,
        experts=experts,
        adapters=adapters,
        rows=rows,
    )


def _expert_facts(mixture: Mixture, texts: int) -> ExpertFacts | None:
    """The experts of the plan; None if the model has none."""
    if mixture.num_experts == 1:
        return None
    return ExpertFacts(
        per_layer=mixture.num_experts,
        per_token=mixture.per_token,
        per_step=mixture.expected_experts(texts),
        parameters=mixture.parameters,
        active_parameters=mixture.active_parameters,
    )


def _rows(
    kept: WeightPlan,
    config: ModelConfig,
    intent: TextSettings,
    target: Target,
    context: int,
    draft: DraftPlan | None,
    adapter_bytes: int,
) -> Iterator[PlanRow]:
    """The rows of one format of weights, one for each kind of KV cache that its attention takes."""
    caches = CACHES if config.kv_layers else ()
    if target.machine.device == "cuda" and config.widest_head > WIDEST_IN_TRITON:
        caches = caches[:1]
    for cache in dict.fromkeys((intent.kv_cache_dtype, *caches)):
        of_cache = replace(intent, kv_cache_dtype=cache)
        yield _row(kept, config, of_cache, target, context, draft, adapter_bytes)


def _row(
    kept: WeightPlan,
    config: ModelConfig,
    intent: TextSettings,
    target: Target,
    context: int,
    draft: DraftPlan | None,
    adapter_bytes: int,
) -> PlanRow:
    step = step_bytes(config, intent)
    # Every text that runs has a place for its recurrent states, which count as weights.
    texts = max(intent.max_num_seqs, target.concurrency)
    of_texts = replace(intent, max_num_seqs=texts)
    structures = structure_bytes(config.vocab_size) if target.machine.device == "cpu" else 0
    facts = replace(text_facts(kept, config, of_texts), step_bytes=step + structures)
    if draft is not None:
        facts = draft.with_cache(intent).beside(facts)
    machine = target.machine
    usable = machine.free_memory_bytes
    if machine.device == "cuda":
        usable = int(usable * intent.gpu_memory_utilization)
    block_bytes = facts.cache_bytes_per_token * intent.block_size
    blocks_of_text = kv_layout_of(intent, facts, machine).most_blocks(context)
    kv = target.concurrency * blocks_of_text * block_bytes
    # Adapters count as weights, as when an engine sizes the pool.
    held = replace(facts, weight_bytes=facts.weight_bytes + adapter_bytes)
    left = usable - held.weight_bytes - held.step_bytes
    if block_bytes:
        max_tokens = max(0, left) // block_bytes * context // blocks_of_text
    else:  # no layer attends
        max_tokens = texts * context if left >= 0 else 0
    flags = []
    if (kept.quantization, kept.stored) != ("none", "none"):
        flags.append(f"--quantization {kept.quantization}")
    if intent.kv_cache_dtype != "auto":
        flags.append(f"--kv-cache-dtype {intent.kv_cache_dtype}")
    if kv > pool_bytes(intent, held, target.whole_machine):
        flags.append(f"--kv-cache-memory-gib {math.ceil(100 * kv / GIB) / 100:g}")
    if target.concurrency > intent.max_num_seqs:
        flags.append(f"--max-num-seqs {target.concurrency}")
    speeds = Speeds(kept, config, intent)
    chip = target.chip
    return PlanRow(
        quantization=kept.quantization,
        is_stored=kept.quantization == kept.stored,
        kv_cache_dtype=intent.resolved_kv_cache_dtype,
        weight_bytes=facts.weight_bytes,
        read_bytes=speeds.read_bytes(target.concurrency),
        kv_bytes=kv,
        adapter_bytes=adapter_bytes,
        step_bytes=step,
        process_bytes=target.process_bytes * intent.tensor_parallel_size + structures,
        fits=kv <= left,
        max_tokens=max_tokens,
        decode_tokens_per_s=speeds.decode(chip, target.concurrency, context) if chip else None,
        prefill_tokens_per_s=speeds.prefill(chip, context) if chip else None,
        flags=flags,
    )


class Speeds:
    """The speed limits of a model's steps."""

    def __init__(self, kept: WeightPlan, config: ModelConfig, intent: TextSettings) -> None:
        dtype_bytes = torch_dtype(intent.model_dtype).itemsize
        self._config = config
        self._attending = [
            (config.layer_windows[layer], config.layer_kv_shapes[layer])
            for layer, source in enumerate(config.layer_kv_sources)
            if source in config.kv_layers
        ]
        self._state_bytes = config.recurrent_bytes(dtype_bytes)
        self._kept = KvNumbers(intent.resolved_kv_cache_dtype)
        self._head_weights = config.vocab_size * config.hidden_size
        self._mixture = mixture = Mixture.of(kept, config)
        unchosen = mixture.parameters - mixture.active_parameters
        self._layer_weights = sum(kept.layer_weights().values()) - unchosen
        looked_up = self._head_weights * dtype_bytes if kept.has_lookup_rows else 0
        unread = looked_up + kept.encoder_bytes(dtype_bytes) + kept.table_bytes(dtype_bytes)
        self._weight_bytes = kept.num_bytes(dtype_bytes) - unread
        self._expert_bytes = expert_bytes(kept, dtype_bytes)

    def read_bytes(self, texts: int) -> int:
        """The weights that a step of decodes reads, without the experts that none of its tokens is
        expected to choose."""
        mixture = self._mixture
        share = mixture.expected_experts(texts) / mixture.num_experts
        return math.ceil(self._weight_bytes - self._expert_bytes * (1 - share))

    def decode(self, chip: Chip, concurrency: int, context: int) -> float:
        """The tokens per second of this many texts with this many tokens each."""
        config = self._config
        kv, attention = 0, 0.0
        for window, shape in self._attending:
            seen = min(context, window or context)
            kv += seen * self._kept.shape_bytes(shape)
            attention += 4 * seen * config.num_attention_heads * shape.head_dim
        kept = kv + 2 * self._state_bytes  # states are read and written
        products = 2 * (self._layer_weights + self._head_weights)
        reading_s = (self.read_bytes(concurrency) + concurrency * kept) / chip.bytes_per_s
        computing_s = concurrency * (products + attention) / chip.flops
        return concurrency / max(reading_s, computing_s)

    def prefill(self, chip: Chip, context: int) -> float:
        """The tokens per second of a prompt with this many tokens."""
        config = self._config
        attention = sum(
            4 * min(context / 2, window or context) * config.num_attention_heads * shape.head_dim
            for window, shape in self._attending
        )
        return chip.flops / (2 * self._layer_weights + attention)
