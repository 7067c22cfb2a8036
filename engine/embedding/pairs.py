"""`PairWork` scores pairs of texts."""

import math
from collections.abc import Sequence

from engine.contract.request import FinishReason
from engine.contract.score import PairEvent, PairsRequest, PairStats
from engine.embedding.whole_texts import TextTurn, WholeTextsLimits, WholeTextsWork, token_ids_of
from engine.models.pair_scorer import PairScorer
from engine.runtime.fault import Unusable
from engine.turns.engine import TurnsEngine

PairEngine = TurnsEngine[PairsRequest, PairEvent, PairStats]


class PairWork(WholeTextsWork[PairsRequest, float, PairEvent, PairStats]):
    """The work of a `PairEngine`."""

    stats_type = PairStats

    def __init__(self, model: PairScorer, limits: WholeTextsLimits) -> None:
        super().__init__(limits)
        self._model = model

    def compute(self, turns: Sequence[TextTurn]) -> list[float]:
        pairs = [token_ids_of(turn) for turn in turns]
        scores: list[float] = self._model.score(pairs, list(map(_first_length, turns))).tolist()
        return scores

    def finish(self, turn: TextTurn, output: float) -> list[PairEvent]:
        if not math.isfinite(output):
            raise Unusable("the score is not finite")
        return [
            PairEvent(
                request_id=turn.pending.request.request_id,
                index=turn.number,
                score=output,
                queue_time_s=turn.queue_time_s,
                finish_reason=FinishReason.STOP,
            )
        ]


def _first_length(turn: TextTurn) -> int:
    request = turn.pending.request
    assert isinstance(request, PairsRequest)
    lengths = request.first_lengths
    return lengths[turn.number] if lengths else len(request.inputs[turn.number])
