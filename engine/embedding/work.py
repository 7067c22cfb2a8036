"""`EmbeddingWork` embeds whole inputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.contract.embed import (
    EmbeddingEvent,
    EmbeddingRequest,
    EmbeddingStats,
    check_dimensions,
)
from engine.contract.request import FinishReason
from engine.embedding.whole_texts import TextTurn, WholeTextsLimits, WholeTextsWork, token_ids_of
from engine.models.sentence_encoder import Embedder
from engine.runtime.fault import Unusable
from engine.turns.engine import TurnsEngine


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingLimits(WholeTextsLimits):
    """The limits of an embedding engine."""

    dimensions: int
    normalizes: bool
    """Whether embeddings are scaled to length 1."""


EmbeddingEngine = TurnsEngine[EmbeddingRequest, EmbeddingEvent, EmbeddingStats]
_Output = tuple[Tensor, bool]
"""An embedding, and whether all its numbers are finite."""


class EmbeddingWork(WholeTextsWork[EmbeddingRequest, _Output, EmbeddingEvent, EmbeddingStats]):
    """The work of an `EmbeddingEngine`."""

    stats_type = EmbeddingStats
    _limits: EmbeddingLimits

    def __init__(self, model: Embedder, limits: EmbeddingLimits) -> None:
        super().__init__(limits)
        self._model = model

    def check(self, request: EmbeddingRequest) -> None:
        check_dimensions(request.dimensions, self._limits.dimensions, request.model)
        super().check(request)

    def compute(self, turns: Sequence[TextTurn]) -> list[_Output]:
        embedded = self._model.embed([token_ids_of(turn) for turn in turns]).cpu()
        return list(zip(embedded, embedded.isfinite().all(1).tolist(), strict=True))

    def finish(self, turn: TextTurn, output: _Output) -> list[EmbeddingEvent]:
        row, is_finite = output
        request = turn.pending.request
        assert isinstance(request, EmbeddingRequest)
        if not is_finite:
            raise Unusable("the embedding has numbers that are not finite")
        return [
            EmbeddingEvent(
                request_id=request.request_id,
                index=turn.number,
                embedding=self._bytes(row[: request.dimensions]),
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
