"""What an `engine.turns.engine.TurnsEngine` needs to know about its work."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from engine.contract.request import EventT, Request, TurnStats
from engine.turns.queue import WaitingQueue

RequestT = TypeVar("RequestT", bound=Request[Any], contravariant=True)
PendingT = TypeVar("PendingT", bound="Pending")
OutputT = TypeVar("OutputT")
TurnStatsT = TypeVar("TurnStatsT", bound=TurnStats)


@dataclass(slots=True, eq=False, kw_only=True)
class Pending:
    """A request that has not ended."""

    request: Request[Any]
    num_turns: int
    """The number of turns known so far. A request with several completions has one for each."""
    num_taken: int = 0
    """The number of turns that steps have taken."""
    rank: tuple[int, ...] = ()
    """The rank of the next turn."""
    is_failed: bool = False
    """Whether the whole request has ended with an error."""

    @property
    def is_begun(self) -> bool:
        """Whether a step has taken a turn."""
        return self.num_taken > 0

    @property
    def has_turn(self) -> bool:
        """Whether a turn is left that no step has taken."""
        return self.num_taken < self.num_turns

    @property
    def order(self) -> int:
        """Where the next turn comes among requests of equal priority: the smallest number goes
        first, then the turn that was queued first."""
        return 0

    def close(self) -> None:
        """Release what is held, as no further turn comes."""


@dataclass(frozen=True, slots=True)
class Turn(Generic[PendingT]):
    """A bounded piece of one request's work, such as an input or a tile."""

    pending: PendingT
    number: int
    queue_time_s: float | None
    """The time from arrival to the first turn; in the first turn only."""


class Work(Protocol[RequestT, PendingT, OutputT, EventT, TurnStatsT]):
    """Decides what an engine computes and which turns share a step."""

    stats_type: type[TurnStatsT]
    items: str
    """What requests are called in the error for a full queue, such as `images`."""

    def check(self, request: RequestT) -> None:
        """Check a request before it is queued.

        Raises:
            InvalidParameter: it asks for something impossible.
        """

    def pending(self, request: RequestT) -> PendingT:
        """Return a request with its first turns, ready to be queued."""

    def choose(self, queue: WaitingQueue[PendingT]) -> Iterator[PendingT]:
        """Yield the requests whose next turns make up the next step.

        The engine takes each turn as it is yielded and queues the request again if it has more, so
        a request may be yielded several times.
        """

    def compute(self, turns: Sequence[Turn[PendingT]]) -> Sequence[OutputT]:
        """Compute an output for each turn. If this fails, each turn is computed alone."""

    def finish(self, turn: Turn[PendingT], output: OutputT) -> list[EventT]:
        """Return the events of a turn, given its output; may add turns to the request. If it
        fails, only this turn fails."""

    def count(
        self, stats: TurnStatsT, turns: Sequence[Turn[PendingT]], events: Sequence[EventT]
    ) -> TurnStatsT:
        """Return the statistics after a step with these turns and events."""

    def num_running(self, queue: WaitingQueue[PendingT], stats: TurnStatsT) -> int:
        """The number of requests in progress."""
        return sum(pending.is_begun for pending in queue)

    def rest(self) -> None:
        """Undo what earlier steps have changed, as no request is left."""
        return
