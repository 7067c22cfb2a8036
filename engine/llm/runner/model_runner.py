"""Carries decisions out on one device: rows → forward pass → logits where needed → tokens.

It owns the model, the KV pool's memory and the sampling state, and knows no queues. Only the loop
thread uses it.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from engine.contract.generate import TokenLogprob
from engine.contract.kv_layout import LayerGroup
from engine.contract.resolved_config import ResolvedConfig
from engine.contract.structure import Structure
from engine.errors import EngineError, InsufficientMemory, InvariantViolation, ModelLoadError
from engine.llm.decision import (
    PENDING_TOKEN_ID,
    NewSequence,
    ScheduleDecision,
    ScheduledSequence,
    SequenceOutput,
    StepOutput,
)
from engine.llm.runner.batch import BLOCK_IDS, Batch, Int32Array, StepRows, lay_out
from engine.llm.runner.kv_storage import KvStorage
from engine.llm.runner.part_states import PartStates
from engine.llm.runner.step_graph import GraphSize, Recorder, StepGraph, StepGraphs
from engine.llm.runner.text_states import TextStates
from engine.llm.runner.warm_up import WarmUpStep, warm_up_steps
from engine.llm.runner.warm_up import decision as warm_up_decision
from engine.llm.sampling.guidance import Guidance
from engine.llm.sampling.sampler import LaunchedDraw, Sampler, SampleRow
from engine.llm.structure.grammars import Grammars
from engine.models.adapters import NO_ADAPTER, Adapters
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.experts_config import expert_row_counts
from engine.models.forward_context import ForwardContext, RowAdapters, RowStates
from engine.models.layers.parallel import TensorParallel
from engine.models.recurrent_config import allocate_states
from engine.runtime.device import PACKED_KV_DTYPES
from engine.runtime.fault import is_out_of_memory
from kernels.shared.transfer import HostCopy, Milestone, to_device

SCORED_ROWS = 128
"""The most prompt rows whose logits exist at one time."""


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that may still run, as an `engine.llm.executor.LaunchedStep`."""

    outputs: dict[int, SequenceOutput]
    """The outputs by sequence id, in the decision's order; tokens are added when they are
    collected."""
    drawn: "DrawnTokens | None" = None
    similarities: dict[int, HostCopy] = field(default_factory=dict)
    """The result of `TextStates.compare`."""
    end: Milestone | None = None
    prepare_time_s: float = 0.0
    forward_time_s: float = 0.0
    sample_time_s: float = 0.0

    def collect(self) -> StepOutput:
        """Wait for the step's end. The wait counts as forward time, since most of it is."""
        started = perf_counter()
        if self.end is not None:
            self.end.wait()
        waited = perf_counter()
        if self.drawn is not None:
            self.drawn.add_to(self.outputs)
        for seq_id, similarity in self.similarities.items():
            self.outputs[seq_id].similarity = similarity.wait().item()
        return StepOutput(
            list(self.outputs.values()),
            prepare_time_s=self.prepare_time_s,
            forward_time_s=self.forward_time_s + waited - started,
            sample_time_s=self.sample_time_s + perf_counter() - waited,
        )


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """The tokens that a step draws. The next step may start from them while they are still on the
    device."""

    draw: LaunchedDraw
    rows: list[SampleRow]
    receivers: list[int]
    """For each row, the sequence whose outcome is the token."""

    @property
    def places(self) -> dict[int, int]:
        """The place of each sequence's first token among the drawn ones, by sequence id."""
        return {row.seq_id: i for i, row in enumerate(self.rows) if row.draft is None}

    def add_to(self, outputs: dict[int, SequenceOutput]) -> None:
        """Wait for the tokens and add to each sequence's output those that follow its text."""
        tokens = self.draw.collect()
        for row, seq_id, token in zip(self.rows, self.receivers, tokens, strict=True):
            output = outputs[seq_id]
            if token is None:
                output.is_waiting |= row.draft is None
                continue
            if output.error is not None:
                continue
            if token.error is not None:
                output.error = token.error
                continue
            output.token_ids.append(token.token_id)
            output.forced = token.forced
            if token.logprob is not None:
                output.logprobs = [*(output.logprobs or ()), token.logprob]


class ModelRunner:
    """An `engine.llm.executor.Executor` with one model in this process.

    Args:
        adapters: those that sequences may have; None if there are none.
        recorder: records decode steps; with None all steps run eagerly.
        background: where steps are recorded; by default a thread.
        grammars: the grammars of structures.
    """

    def __init__(
        self,
        model: CausalLM,
        model_config: ModelConfig,
        config: ResolvedConfig,
        device: torch.device,
        *,
        adapters: Adapters | None = None,
        recorder: Recorder | None = None,
        background: Executor | None = None,
        grammars: Grammars | None = None,
    ) -> None:
        parallel = model.options.parallel
        self._draws = parallel.rank == 0
        """Whether this rank draws the tokens, which the others need not know."""
        self._model = model
        self._config = config
        self._device = device
        self._vocab_size = model_config.vocab_size
        self._adapters = adapters
        self._adapter_slots: dict[int, int] = {}
        """The adapter's slot, for each sequence that has an adapter."""
        self._recorded_version = 0
        """The version of the adapters with which steps were recorded; 0 if none was."""
        self._num_groups = len(model_config.layer_groups)
        self._expert_rows = expert_row_counts(model_config)
        self.kv = KvStorage(
            num_blocks=config.num_kv_blocks + (recorder is not None),
            layer_groups=[own_share(group, parallel) for group in model_config.layer_groups],
            block_size=config.block_size,
            dtype=PACKED_KV_DTYPES.get(config.kv_cache_dtype, model.options.dtype),
            device=device,
        )
        self._recurrent = allocate_states(
            model_config,
            config.num_recurrent_slots + (recorder is not None),
            model.options.dtype,
            device,
        )
        self._graphs: StepGraphs | None = None
        if recorder is not None:
            self._graphs = StepGraphs(
                self._run_model,
                recorder,
                max_num_rows=config.max_decode_rows,
                max_model_len=config.max_model_len,
                block_size=config.block_size,
                scratch_block=config.num_kv_blocks,
                scratch_slot=config.num_recurrent_slots if self._recurrent else None,
                num_groups=self._num_groups,
                device=device,
                adapters=adapters is not None,
                background=background,
            )
        self._grammars = grammars
        self._sampler = Sampler(
            model_config.vocab_size, device, grammars, never=model_config.never_token_ids
        )
        self._guidance = Guidance()
        self._states = TextStates()
        self._pictures = model_config.pictures
        self._part_states = PartStates(model.picture_encoder, device)
        self._scored: dict[int, NewSequence] = {}
        """Sequences whose prompt is scored, to look up the target tokens."""
        self._drawn: DrawnTokens | None = None
        """The tokens that the last step draws."""

    @property
    def kv_bytes_committed(self) -> int:
        """The physical memory that the KV pool takes so far."""
        return self.kv.bytes_committed

    def prepare(self, structure: Structure, client: str) -> "Future[object]":
        """See `engine.llm.executor.Executor`.

        Raises:
            InvariantViolation: this runner has no tokenizer to make grammars with.
        """
        if self._grammars is None:
            raise InvariantViolation("this runner has no grammars")
        return self._grammars.prepare(structure, client)  # type: ignore[return-value]

    def execute(self, decision: ScheduleDecision) -> StepOutput:
        """Run one step to its end."""
        return self.launch(decision).collect()

    @torch.inference_mode()
    def launch(self, decision: ScheduleDecision) -> LaunchedStep:
        """Begin a step, which may start from tokens that the last one draws. On a CPU the whole
        step runs now.

        A sequence whose logits are not finite gets an error; others are not affected. After an
        exception the sampling state is that of the previous step, without the decision's finished
        sequences and with any of its new ones, which may be announced again.
        """
        started = perf_counter()
        self._apply_changes(decision)
        self._part_states.change(decision.dropped, decision.encoded, decision.advanced)
        before, self._drawn = self._drawn, None
        outputs = {s.seq_id: SequenceOutput(s.seq_id) for s in decision.scheduled}
        if not outputs:
            return LaunchedStep(outputs)
        rows = lay_out(
            decision.scheduled,
            self._config.block_size,
            self._adapter_slots,
            looks_both_ways=self._pictures is not None and self._pictures.looks_both_ways,
        )
        forward = self._prepare(rows, before)
        prepared = perf_counter()
        hidden = forward()
        logits = self._logits_to_sample(rows, hidden)
        computed = perf_counter()
        self._score_prompts(rows, hidden, outputs)
        if not self._draws:
            return LaunchedStep(outputs)
        similarities = self._states.compare(rows, hidden)
        self._drawn = self._draw(rows, logits, outputs)
        return LaunchedStep(
            outputs,
            self._drawn,
            similarities,
            Milestone(self._device),
            prepare_time_s=prepared - started,
            forward_time_s=computed - prepared,
            sample_time_s=perf_counter() - computed,
        )

    def warm_up(self) -> None:
        """Run a step of every kind once, so that no request is slow. Changes no state.

        It writes to block 0, which has no owner yet.

        Raises:
            ModelLoadError: the model gives no finite numbers, or the steps need too much memory.
        """
        try:
            self._run_warm_up_steps()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise InsufficientMemory(
                "a trial step needs more memory than the device has free; use a smaller model or "
                "free memory"
            ) from error

    def _run_warm_up_steps(self) -> None:
        for step in warm_up_steps(self._config, self._expert_rows, self._pictures):
            self.run_once(step)

    def run_once(self, step: WarmUpStep) -> None:
        """Run a step that belongs to no request, eagerly; see `warm_up`. If there are adapters, run
        it again as a step in which a row has one.

        Raises:
            ModelLoadError: the model gives no finite numbers.
        """
        decided = warm_up_decision(
            step,
            self._config.block_size,
            self._num_groups,
            num_slots=self._config.num_recurrent_slots,
        )
        graphs, self._graphs = self._graphs, None
        try:
            output = self.execute(decided)
            if self._adapters is not None:
                # No adapter's numbers take part, so that none can fail the model.
                self._adapter_slots[decided.new[0].seq_id] = NO_ADAPTER
                self.execute(replace(decided, new=[], encoded=[]))
            self.execute(
                ScheduleDecision(
                    finished=[new.seq_id for new in decided.new],
                    dropped=[part.digest for part in decided.encoded],
                )
            )
        finally:
            self._graphs = graphs
        problem = next((row.error for row in output.outputs if row.error is not None), None)
        if problem is not None:
            raise ModelLoadError(
                f"a trial step failed: {problem}; the weights are damaged, or too large for "
                f"{self._config.dtype}: fetch the model again, or set another dtype"
            )

    @property
    def graph_sizes(self) -> list[GraphSize]:
        """All sizes that may be recorded, the largest first; empty if steps are not recorded."""
        return self._graphs.sizes if self._graphs is not None else []

    def record(self, size: GraphSize) -> StepGraph:
        """Record a decode step without keeping it for later ones, to measure it."""
        if self._graphs is None:
            raise InvariantViolation("this runner does not record steps")
        return self._graphs.record(size)

    def use_idle_time(self) -> bool:
        """Prepare grammars, then record one step of a likely size (`StepGraphs.record_ahead`)."""
        if self._grammars is not None:
            self._grammars.warm_up()
        if self._graphs is None:
            return False
        self._look_at_adapters(self._graphs)
        return self._graphs.record_ahead()

    def shutdown(self) -> None:
        """Do nothing, as nothing outlives the process."""

    def _apply_changes(self, decision: ScheduleDecision) -> None:
        for seq_id in decision.finished:
            self._sampler.remove(seq_id)
            self._guidance.remove(seq_id)
            self._states.remove(seq_id)
            self._scored.pop(seq_id, None)
            self._adapter_slots.pop(seq_id, None)
        for sequence in decision.new:
            self._guidance.add(sequence)
            self._states.add(sequence)
            if sequence.guides is None:
                self._sampler.add(sequence)
            if sequence.adapter is not None:
                self._adapter_slots[sequence.seq_id] = self._slot_of(sequence.adapter)
            if sequence.sampling.prompt_logprobs is not None:
                self._scored[sequence.seq_id] = sequence
        self.kv.copy(decision.copies)

    def _slot_of(self, adapter: str) -> int:
        if self._adapters is None:
            raise InvariantViolation("a sequence has an adapter, but this runner has no adapters")
        return self._adapters.slot_of(adapter)

    def _prepare(self, rows: StepRows, before: DrawnTokens | None) -> Callable[[], Tensor]:
        """Put the step's inputs in place. Returns a function that computes its hidden states, [T,
        C]."""
        self.kv.clear(rows.entered_block_ids)
        self.kv.will_write(rows.inputs[BLOCK_IDS:])
        self.kv.commit_ahead(rows.inputs[BLOCK_IDS:])
        graph = self._find_graph(rows)
        if graph is not None:
            graph.load(rows)
            _fill_in(graph.token_ids, rows, before)
            return lambda: graph.replay()[: rows.num_rows]
        batch = Batch.on(self._device, rows)
        _fill_in(batch.token_ids, rows, before)
        states = self._part_states.of(rows.states)
        return lambda: self._run_model(batch, states)

    def _find_graph(self, rows: StepRows) -> StepGraph | None:
        if self._graphs is None or rows.states:
            return None
        self._look_at_adapters(self._graphs)
        return self._graphs.find(rows)

    def _look_at_adapters(self, graphs: StepGraphs) -> None:
        if self._adapters is not None and self._adapters.version != self._recorded_version:
            self._recorded_version = self._adapters.version
            graphs.renew_adapters()

    def _run_model(self, batch: Batch, states: RowStates | None = None) -> Tensor:
        adapters, slots = self._adapters, batch.adapter_slots
        ctx = ForwardContext(
            groups=batch.groups,
            group_of_layer=self.kv.group_of_layer,
            kv_caches=self.kv.layers,
            kv_scales=self.kv.scales,
            adapters=None if adapters is None or slots is None else adapters.of_rows(slots),
            states=states,
            recurrent=batch.recurrent,
            recurrent_states=self._recurrent,
        )
        return self._model.forward(batch.token_ids, batch.positions, ctx)

    def _logits_to_sample(self, rows: StepRows, hidden: Tensor) -> Tensor:
        """Compute the logits of the rows that draw, in the order of `StepRows.draws`."""
        places = rows.drawing_rows
        slots = rows.adapter_slots
        if len(places) < len(hidden) or places != sorted(places):
            hidden = hidden[to_device([np.array(places, dtype=np.int64)], self._device)[0]]
            slots = None if slots is None else slots[places]
        return self._model.compute_logits(hidden, self._of_logits(slots))

    def _of_logits(self, slots: Int32Array | None) -> RowAdapters | None:
        """The adapters of rows whose logits are computed, if they change logits."""
        if slots is None or self._adapters is None or not self._adapters.change_logits:
            return None
        return self._adapters.of_rows(to_device([slots], self._device)[0])

    def _draw(
        self, step_rows: StepRows, logits: Tensor, outputs: dict[int, SequenceOutput]
    ) -> DrawnTokens | None:
        ready = self._guidance.ready(logits, step_rows.draws)
        for output in (outputs[seq_id] for seq_id in ready.waiting):
            if output.error is None:
                output.token_ids.append(PENDING_TOKEN_ID)
        if not ready.rows:
            return None
        return DrawnTokens(
            self._sampler.launch(ready.logits, ready.rows), ready.rows, ready.receivers
        )

    def _score_prompts(
        self, step_rows: StepRows, hidden: Tensor, outputs: dict[int, SequenceOutput]
    ) -> None:
        for (sequence, *_), first_row in zip(step_rows.spans, step_rows.first_rows, strict=True):
            if not sequence.prompt_logprobs:
                continue
            output = outputs[sequence.seq_id]
            try:
                rows = hidden[first_row : first_row + len(sequence.token_ids)]
                output.prompt_logprobs = self._score(sequence, rows)
            except EngineError as error:
                output.error = error.message

    def _score(self, sequence: ScheduledSequence, rows: Tensor) -> list[TokenLogprob]:
        """Score the prompt tokens that follow this chunk's tokens, in pieces that bound the
        memory."""
        new = self._scored[sequence.seq_id]
        next_at = sequence.start + 1
        targets = new.prompt_token_ids[next_at : next_at + len(rows)]
        num_top = new.sampling.prompt_logprobs or 0
        slot = self._adapter_slots.get(sequence.seq_id)
        scores: list[TokenLogprob] = []
        for start in range(0, len(targets), SCORED_ROWS):
            piece = targets[start : start + SCORED_ROWS]
            # Copied, because rows at an unaligned address would make a kernel compile again.
            of_rows = None if slot is None else np.full(len(piece), slot, dtype=np.int32)
            logits = self._model.compute_logits(
                rows[start : start + len(piece)].clone(), self._of_logits(of_rows)
            )
            scores += self._sampler.score(logits, piece, num_top)
        return scores


def own_share(group: LayerGroup, parallel: TensorParallel) -> LayerGroup:
    """Return a group with this rank's key/value heads only."""
    of_model = group.shape.num_heads
    num_heads = parallel.among(of_model).share(of_model, "key/value heads")
    return replace(group, shape=group.shape._replace(num_heads=num_heads))


def _fill_in(token_ids: Tensor, rows: StepRows, before: DrawnTokens | None) -> None:
    """Fill in the previous step's tokens, which the decision could not name."""
    if not rows.pending_rows:
        return
    if before is None:
        raise InvariantViolation("a step continues from tokens that no earlier step draws")
    places = before.places
    sources = [places[rows.spans[row].sequence.seq_id] for row in rows.pending_rows]
    moves = to_device([np.array([rows.pending_rows, sources])], token_ids.device)[0]
    token_ids.index_copy_(0, moves[0], before.draw.token_ids[moves[1]])
