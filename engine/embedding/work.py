"""`EmbeddingWork` embeds whole inputs, as many in a step as fit into the token budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.contract.embed import (
    EmbeddingEvent,
    EmbeddingRequest,
    EmbeddingStats,
    check_dimensions,
    check_input,
)
from engine.contract.request import FinishReason
from engine.models.sentence_encoder import Embedder
from engine.runtime.fault import Unusable
from engine.turns.engine import TurnLimits, TurnsEngine
from engine.turns.queue import WaitingQueue
from engine.turns.work import Pending, Turn, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingLimits(TurnLimits):
    """The limits of an embedding engine."""

    max_model_len: int
    """The most tokens of an input."""
    vocab_size: int
    dimensions: int
    normalizes: bool
    """Whether embeddings are scaled to length 1."""
    max_num_seqs: int
    """The most inputs of a step."""
    max_num_batched_tokens: int
    """The most tokens of a step, unless a single input has more."""


@dataclass(slots=True, eq=False, kw_only=True)
class PendingTexts(Pending):
    """A request with inputs left. Each turn embeds one input."""

    request: EmbeddingRequest


EmbeddingEngine = TurnsEngine[EmbeddingRequest, EmbeddingEvent, EmbeddingStats]
EmbeddingTurn = Turn[PendingTexts]
_Output = tuple[Tensor, bool]
"""An embedding, and whether all its numbers are finite."""


class EmbeddingWork(Work[EmbeddingRequest, PendingTexts, _Output, EmbeddingEvent, EmbeddingStats]):
    """The work of an `EmbeddingEngine`."""

    stats_type = EmbeddingStats
    queue_full = "{num_waiting} inputs are waiting and this request has {num_new} more"

    def __init__(self, model: Embedder, limits: EmbeddingLimits) -> None:
        self._model = model
        self._limits = limits

    def check(self, request: EmbeddingRequest) -> None:
        limits = self._limits
        check_dimensions(request.dimensions, limits.dimensions, request.model)
        for index, token_ids in enumerate(request.inputs):
            name = f"input[{index}]"
            check_input(token_ids, limits.max_model_len, limits.vocab_size, name, "input")

    def pending(self, request: EmbeddingRequest) -> PendingTexts:
        return PendingTexts(request=request, num_turns=len(request.inputs))

    def choose(self, queue: WaitingQueue[PendingTexts]) -> Iterator[PendingTexts]:
        """Yield requests in the order of their turns until an input does not fit, which then comes
        first in the next step."""
        num_tokens = 0
        for number in range(self._limits.max_num_seqs):
            if not queue:
                return
            pending = queue.peek()
            num_tokens += len(pending.request.inputs[pending.num_taken])
            if number and num_tokens > self._limits.max_num_batched_tokens:
                return
            yield pending

    def compute(self, turns: Sequence[EmbeddingTurn]) -> list[_Output]:
        embedded = self._model.embed([_token_ids(turn) for turn in turns]).cpu()
        return list(zip(embedded, embedded.isfinite().all(1).tolist(), strict=True))

    def finish(self, turn: EmbeddingTurn, output: _Output) -> list[EmbeddingEvent]:
        row, is_finite = output
        if not is_finite:
            raise Unusable("the embedding has numbers that are not finite")
        return [
            EmbeddingEvent(
                request_id=turn.pending.request.request_id,
                index=turn.number,
                embedding=self._bytes(row[: turn.pending.request.dimensions]),
                queue_time_s=turn.queue_time_s,
                finish_reason=FinishReason.STOP,
            )
        ]

    def _bytes(self, row: Tensor) -> bytes:
        if self._limits.normalizes:
            # As in sentence-transformers, an embedding of length 0 stays as it is.
            row = torch.nn.functional.normalize(row, dim=0)
        data: bytes = row.numpy().astype("<f4").tobytes()
        return data

    def count(
        self,
        stats: EmbeddingStats,
        turns: Sequence[EmbeddingTurn],
        events: Sequence[EmbeddingEvent],
    ) -> EmbeddingStats:
        num_tokens = sum(len(_token_ids(turn)) for turn in turns)
        return replace(
            stats,
            num_tokens=stats.num_tokens + num_tokens,
            step_inputs=len(turns),
            step_tokens=num_tokens,
        )

    def num_running(self, queue: WaitingQueue[PendingTexts], stats: EmbeddingStats) -> int:
        """The number of inputs of the newest step while others are left."""
        return stats.step_inputs if queue else 0


def _token_ids(turn: EmbeddingTurn) -> list[int]:
    return turn.pending.request.inputs[turn.number]
