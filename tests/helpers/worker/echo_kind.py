"""A third kind of model, only for tests: it answers texts with themselves, in capitals.

As a program it is the worker of such a model: the real loop, with a row more in the tables of
operations and of kinds.
"""

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from engine.contract.kinds import KINDS, Kind
from engine.contract.operations import OPERATIONS, Operation
from engine.contract.request import Event, FinishReason, Info, Request, TurnStats
from engine.contract.status import Phase
from engine.contract.worker_settings import WorkerSettings
from engine.errors import InvalidParameter
from engine.turns.engine import TurnLimits, TurnsEngine
from engine.turns.work import Pending, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoEvent(Event):
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoRequest(Request[EchoEvent]):
    texts: list[str]

    @property
    def num_completions(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoStats(TurnStats):
    num_chars: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoInfo(Info):
    greeting: str


class EchoWork(Work):
    """Answers a text in each turn, and all that wait in one step."""

    stats_type = EchoStats
    items = "texts"

    def check(self, request):
        if "" in request.texts:
            raise InvalidParameter("a text is empty; leave it out", param="texts")

    def pending(self, request):
        return Pending(request=request, num_turns=len(request.texts))

    def choose(self, queue):
        while queue:
            yield queue.peek()

    def compute(self, turns):
        texts = [turn.pending.request.texts[turn.number] for turn in turns]
        if "fail" in texts:
            raise ZeroDivisionError
        return [text.upper() for text in texts]

    def finish(self, turn, output):
        return [
            EchoEvent(
                request_id=turn.pending.request.request_id,
                index=turn.number,
                text=output,
                finish_reason=FinishReason.STOP,
            )
        ]

    def count(self, stats, turns, events):
        return replace(stats, num_chars=stats.num_chars + sum(len(one.text) for one in events))


def is_echo(checkpoint, wanted):
    return (checkpoint.path / "greeting.txt").exists()


def load_engine(checkpoint, model, config, host):
    host.reserve("cpu", "weights", 1, 1000)
    host.report(Phase.WARMING_UP)
    info = EchoInfo(
        model=model,
        path=str(checkpoint.path),
        architecture="echo",
        dtype="float32",
        created=1,
        greeting=(checkpoint.path / "greeting.txt").read_text(),
    )
    return TurnsEngine(EchoWork(), TurnLimits(max_num_queued=99)), info


ECHO = Operation(
    name="echo",
    makes="echoes",
    request=EchoRequest,
    event=EchoEvent,
    stats=EchoStats,
    info=EchoInfo,
)
ECHO_KIND = Kind(
    name="echo",
    operations=(ECHO,),
    settings=WorkerSettings,
    layouts=("folder",),
    recognise="tests.helpers.worker.echo_kind:is_echo",
    loader="tests.helpers.worker.echo_kind:load_engine",
    has_text_side=False,
    yields=False,
    threads_change_bits=False,
)

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from tests.helpers.worker import echo_kind  # by the name that its row gives it

    OPERATIONS[echo_kind.ECHO.name] = echo_kind.ECHO
    KINDS[echo_kind.ECHO_KIND.name] = echo_kind.ECHO_KIND
    from engine.worker.loop import main

    os._exit(main())
