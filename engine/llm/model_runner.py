"""Carries decisions out on one device: rows → forward pass → logits where needed → tokens.

Owns the model, the KV pool's memory and the sampling state; knows no queues. Loop thread only.
"""

from concurrent.futures import Executor
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from engine.config import ResolvedConfig
from engine.errors import EngineError
from engine.llm.batch import BLOCK_IDS, Batch, StepRows, lay_out
from engine.llm.cuda_graph import DecodeGraphs, Recorder
from engine.llm.decision import (
    NewSequence,
    ScheduleDecision,
    ScheduledSequence,
    SequenceOutput,
    StepOutput,
)
from engine.llm.kv_storage import KvStorage
from engine.llm.sampling import Sampler, SampleRow
from engine.models.causal_lm import CausalLM
from engine.models.config import ModelConfig
from engine.models.forward_context import ForwardContext
from engine.types import SamplingParams, TokenLogprob
from kernels.transfer import to_device

SCORED_ROWS = 128
"""Prompt rows whose logits exist at one time."""
WARM_UP_TOKENS = (1, 2, 4, 8, 16, 24, 32)
"""Decode batch sizes to run once; oneDNN compiles a kernel for each number of rows it meets."""
OUT_OF_MEMORY = "the step needs more memory than the device has free; use a smaller batch"


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that was over when `launch` returned."""

    output: StepOutput

    def collect(self) -> StepOutput:
        """See `engine.llm.executor.LaunchedStep`."""
        return self.output


@dataclass(frozen=True, slots=True)
class DrawnTokens:
    """What the last step drew, still on the device: the next one may start from it."""

    token_ids: Tensor
    """[R] int64, at least one; a row that failed has any id of the vocabulary."""
    places: dict[int, int] = field(default_factory=dict)
    """By sequence id. None after a step that failed as a whole: its sequences have ended, and it
    does not matter what rows of theirs start from."""


class ModelRunner:
    """Executes decisions one after the other.

    Args:
        recorder: records decode steps as graphs; None runs all steps eagerly.
        background: where it does; by default a thread.
    """

    def __init__(
        self,
        model: CausalLM,
        model_config: ModelConfig,
        config: ResolvedConfig,
        device: torch.device,
        *,
        recorder: Recorder | None = None,
        background: Executor | None = None,
    ) -> None:
        parallel = model.options.parallel
        self._model = model
        self._config = config
        self._device = device
        self._vocab_size = model_config.vocab_size
        self._kv = KvStorage(
            num_blocks=config.num_kv_blocks + (recorder is not None),
            num_layers=model_config.num_hidden_layers,
            num_kv_heads=parallel.share(model_config.num_key_value_heads, "key/value heads"),
            block_size=config.block_size,
            head_dim=model_config.head_dim,
            dtype=model.options.dtype,
            device=device,
        )
        self._graphs: DecodeGraphs | None = None
        if recorder is not None:
            self._graphs = DecodeGraphs(
                self._run_model,
                recorder,
                max_num_seqs=config.max_num_seqs,
                max_model_len=config.max_model_len,
                block_size=config.block_size,
                scratch_block=config.num_kv_blocks,
                device=device,
                background=background,
            )
        self._sampler = Sampler(model_config.vocab_size, device)
        self._scored: dict[int, NewSequence] = {}
        """Sequences whose prompt is to be scored: the targets come from it."""
        self._drawn = self._nothing_drawn()

    @property
    def kv_bytes_committed(self) -> int:
        """Physical memory that the KV pool takes so far."""
        return self._kv.bytes_committed

    def execute(self, decision: ScheduleDecision) -> StepOutput:
        """Run one step to its end."""
        return self.launch(decision).collect()

    @torch.inference_mode()
    def launch(self, decision: ScheduleDecision) -> FinishedStep:
        """Run one step, whose tokens may be those that the last one drew.

        A sequence whose logits are not finite gets an error, the others are unaffected. When memory
        runs out all sequences of the step get one. Other exceptions pass through; the sampling
        state is then as after the step before, plus and minus the decision's sequences.
        """
        self._apply_changes(decision)
        drawn, self._drawn = self._drawn, self._nothing_drawn()
        if not decision.scheduled:
            return FinishedStep(StepOutput([]))
        started = perf_counter()
        try:
            rows = lay_out(decision.scheduled, self._config.block_size)
            hidden = self._forward(rows, drawn)
            logits = self._logits_to_sample(rows, hidden)
            computed = perf_counter()
            outputs = {s.seq_id: SequenceOutput(s.seq_id) for s in decision.scheduled}
            self._score_prompts(rows, hidden, outputs)
            self._sample(rows, logits, outputs)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            return FinishedStep(
                StepOutput(
                    [SequenceOutput(s.seq_id, error=OUT_OF_MEMORY) for s in decision.scheduled]
                )
            )
        return FinishedStep(
            StepOutput(
                [outputs[s.seq_id] for s in decision.scheduled],
                forward_time_s=computed - started,
                sample_time_s=perf_counter() - computed,
            )
        )

    def warm_up(self) -> None:
        """Run typical shapes once, so that the first requests are not slow. Changes no state.

        Writes to block 0, which has no owner yet.
        """
        most = min(self._config.max_num_seqs, self._config.max_num_batched_tokens)
        sizes = {min(size, most) for size in WARM_UP_TOKENS}
        for size in sorted(sizes):
            self._warm_up_step([1] * size)
        longest = min(self._config.block_size, self._config.max_num_batched_tokens)
        self._warm_up_step([longest])

    def _warm_up_step(self, lengths: list[int]) -> None:
        greedy = SamplingParams(temperature=0.0, max_tokens=1)
        ids = [-1 - index for index in range(len(lengths))]
        self.execute(
            ScheduleDecision(
                new=[
                    NewSequence(seq_id, [0] * length, greedy, 0, 0, ())
                    for seq_id, length in zip(ids, lengths, strict=True)
                ],
                scheduled=[
                    ScheduledSequence(
                        seq_id, [0] * length, 0, [0], samples=True, num_output_tokens=0
                    )
                    for seq_id, length in zip(ids, lengths, strict=True)
                ],
            )
        )
        self.execute(ScheduleDecision(finished=ids))

    def _nothing_drawn(self) -> DrawnTokens:
        return DrawnTokens(torch.zeros(1, dtype=torch.int64, device=self._device))

    def _apply_changes(self, decision: ScheduleDecision) -> None:
        for seq_id in decision.finished:
            self._sampler.remove(seq_id)
            self._scored.pop(seq_id, None)
        for sequence in decision.new:
            self._sampler.add(sequence)
            if sequence.sampling.prompt_logprobs is not None:
                self._scored[sequence.seq_id] = sequence
        self._kv.copy(decision.copies)

    def _forward(self, rows: StepRows, drawn: DrawnTokens) -> Tensor:
        """Hidden states of the step's rows, [T, C]."""
        self._kv.clear(rows.entered_block_ids)
        self._kv.will_write(rows.facts[BLOCK_IDS])
        graph = self._graphs.find(rows) if self._graphs is not None else None
        if graph is not None:
            graph.load(rows)
            _fill_in(graph.token_ids, rows, drawn)
            return graph.replay()[: rows.num_rows]
        batch = Batch.on(self._device, rows)
        _fill_in(batch.token_ids, rows, drawn)
        return self._run_model(batch)

    def _run_model(self, batch: Batch) -> Tensor:
        ctx = ForwardContext(
            batch=batch.paged, slot_mapping=batch.slot_mapping, kv_caches=self._kv.layers
        )
        return self._model.forward(batch.token_ids, batch.positions, ctx)

    def _logits_to_sample(self, rows: StepRows, hidden: Tensor) -> Tensor:
        """Logits of the last row of each sequence that samples, in row order."""
        places = rows.sampling_rows
        if len(places) < len(hidden):
            hidden = hidden[to_device([np.array(places, dtype=np.int64)], self._device)[0]]
        return self._model.compute_logits(hidden)

    def _sample(
        self, step_rows: StepRows, logits: Tensor, outputs: dict[int, SequenceOutput]
    ) -> None:
        sampling = [s for s in step_rows.sequences if s.samples]
        rows = [SampleRow(s.seq_id, s.num_output_tokens) for s in sampling]
        tokens = self._sampler.sample(logits, rows)
        self._drawn = DrawnTokens(
            torch.tensor([max(t.token_id, 0) for t in tokens], device=self._device),
            {row.seq_id: place for place, row in enumerate(rows)},
        )
        for row, token in zip(rows, tokens, strict=True):
            output = outputs[row.seq_id]
            if token.error is not None:
                output.error = output.error or token.error
                continue
            output.token_ids = [token.token_id]
            output.logprobs = None if token.logprob is None else [token.logprob]

    def _score_prompts(
        self, step_rows: StepRows, hidden: Tensor, outputs: dict[int, SequenceOutput]
    ) -> None:
        for sequence, first_row in zip(step_rows.sequences, step_rows.first_rows, strict=True):
            if not sequence.prompt_logprobs:
                continue
            output = outputs[sequence.seq_id]
            try:
                rows = hidden[first_row : first_row + len(sequence.token_ids)]
                output.prompt_logprobs = self._score(sequence, rows)
            except EngineError as error:
                output.error = error.message

    def _score(self, sequence: ScheduledSequence, rows: Tensor) -> list[TokenLogprob]:
        """Judge the prompt tokens that follow this chunk's, in pieces that bound the memory."""
        new = self._scored[sequence.seq_id]
        next_at = sequence.start + 1
        targets = new.prompt_token_ids[next_at : next_at + len(rows)]
        num_top = new.sampling.prompt_logprobs or 0
        scores: list[TokenLogprob] = []
        for start in range(0, len(targets), SCORED_ROWS):
            piece = targets[start : start + SCORED_ROWS]
            logits = self._model.compute_logits(rows[start : start + len(piece)])
            scores += self._sampler.score(logits, piece, num_top)
        return scores


def _fill_in(token_ids: Tensor, rows: StepRows, drawn: DrawnTokens) -> None:
    """Put the tokens of the step before where the decision could not name them."""
    if not rows.pending_rows:
        return
    sources = [drawn.places.get(rows.sequences[row].seq_id, 0) for row in rows.pending_rows]
    moves = to_device([np.array([rows.pending_rows, sources])], token_ids.device)[0]
    token_ids.index_copy_(0, moves[0], drawn.token_ids[moves[1]])


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; torch has no type of its own for that on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(
        error
    )
