"""A third kind of model, only for tests: it answers texts with themselves, in capitals.

As a program it is the worker of such a model: the real loop, and one more row in the table of
kinds.
"""

import os
from dataclasses import dataclass

from engine.contract.kinds import KINDS, Kind
from engine.contract.rejection import rejection
from engine.contract.request import Event, FinishReason, Info, Request, Stats
from engine.contract.status import Phase
from engine.errors import InvalidParameter
from engine.runtime.fault import answer_for


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
class EchoStats(Stats):
    num_chars: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EchoInfo(Info):
    greeting: str


class EchoEngine:
    """Answers all texts of all requests that wait, in one step."""

    def __init__(self):
        self.waiting = {}
        self.num_steps = self.num_chars = 0

    def add(self, request):
        if "" in request.texts:
            raise InvalidParameter("a text is empty; leave it out", param="texts")
        self.waiting[request.request_id] = request

    def abort(self, request_id, index=None):
        self.waiting.pop(request_id, None)

    def has_work(self):
        return bool(self.waiting)

    def step(self):
        events = [event for request in self.waiting.values() for event in self.answer(request)]
        self.waiting.clear()
        self.num_steps += 1
        return events, self.stats()

    def answer(self, request):
        try:
            if "fail" in request.texts:
                raise ZeroDivisionError
        except ZeroDivisionError as error:
            return rejection(request, answer_for(error, request.request_id))
        self.num_chars += sum(map(len, request.texts))
        return [
            EchoEvent(
                request_id=request.request_id,
                index=index,
                text=text.upper(),
                finish_reason=FinishReason.STOP,
            )
            for index, text in enumerate(request.texts)
        ]

    def stats(self):
        return EchoStats(
            num_waiting=len(self.waiting), num_steps=self.num_steps, num_chars=self.num_chars
        )

    def shutdown(self):
        pass


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
    return EchoEngine(), info


ECHO = Kind(
    name="echo",
    makes="echoes",
    request=EchoRequest,
    event=EchoEvent,
    stats=EchoStats,
    info=EchoInfo,
    layouts=("folder",),
    recognise="echo_kind:is_echo",
    loader="echo_kind:load_engine",
    has_text_side=False,
    yields=False,
    threads_change_bits=False,
)

if __name__ == "__main__":
    import echo_kind  # by the name that its row gives it

    KINDS[echo_kind.ECHO.name] = echo_kind.ECHO
    from engine.worker.loop import main

    os._exit(main())
