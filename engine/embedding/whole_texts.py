"""`WholeTextsWork` computes whole texts, as many in a step as fit into the token budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from engine.contract.request import EventT
from engine.contract.whole_texts import WholeTextsRequest, WholeTextsStats, check_input
from engine.turns.engine import TurnLimits
from engine.turns.queue import WaitingQueue
from engine.turns.work import OutputT, Pending, Turn, Work

TextsRequestT = TypeVar("TextsRequestT", bound=WholeTextsRequest[Any], contravariant=True)
TextsStatsT = TypeVar("TextsStatsT", bound=WholeTextsStats)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeTextsLimits(TurnLimits):
    """The limits of an engine that computes texts whole."""

    max_model_len: int
    """The most tokens of an input."""
    vocab_size: int
    max_num_seqs: int
    """The most inputs of a step."""
    max_num_batched_tokens: int
    """The most tokens of a step, unless a single input has more."""


@dataclass(slots=True, eq=False, kw_only=True)
class PendingTexts(Pending):
    """A request with inputs left. Each turn computes one input."""

    request: WholeTextsRequest[Any]


TextTurn = Turn[PendingTexts]


class WholeTextsWork(Work[TextsRequestT, PendingTexts, OutputT, EventT, TextsStatsT]):
    """The work of an engine that computes texts whole."""

    items = "requests"

    def __init__(self, limits: WholeTextsLimits) -> None:
        self._limits = limits

    def check(self, request: TextsRequestT) -> None:
        limits = self._limits
        for index, token_ids in enumerate(request.inputs):
            name = f"input[{index}]"
            check_input(token_ids, limits.max_model_len, limits.vocab_size, name, "input")

    def pending(self, request: TextsRequestT) -> PendingTexts:
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

    def count(
        self, stats: TextsStatsT, turns: Sequence[TextTurn], events: Sequence[EventT]
    ) -> TextsStatsT:
        num_tokens = sum(len(token_ids_of(turn)) for turn in turns)
        return replace(
            stats,
            num_tokens=stats.num_tokens + num_tokens,
            step_inputs=len(turns),
            step_tokens=num_tokens,
        )

    def num_running(self, queue: WaitingQueue[PendingTexts], stats: TextsStatsT) -> int:
        """The number of inputs of the newest step while others are left."""
        return stats.step_inputs if queue else 0


def token_ids_of(turn: TextTurn) -> list[int]:
    """The input that a turn computes."""
    return turn.pending.request.inputs[turn.number]
