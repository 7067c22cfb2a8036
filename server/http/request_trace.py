"""Where the time of one HTTP request goes and what it uses, for the log, `/v1/usage` and traces.

The access log's middleware makes a trace. Meters (`server.http.item_metrics`,
`server.text.metrics`) add what their part of the request was.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

from engine.contract.phase import Phase
from engine.contract.sampling_params import SamplingParams
from server.http.usage import UsageTable, Used, User

MAX_PHASES = 64
"""The most phases of a request, without their parts; further ones are left out."""

_current: ContextVar["RequestTrace | None"] = ContextVar("trace", default=None)


class RequestTrace:
    """The trace of one request. Event loop only.

    Attributes:
        key: the name of its API key.
        phases: what is over, in the order of their ends.
        used: everything that it used.
        queue_s, first_token_s, decode_s: the longest wait in an engine's queue, the time from the
            first prompt's arrival to its first token, and from there to its end; None if there was
            none.
        id: the id of the answer.
        sampling: the sampling parameters of a text.
        finish_reasons: why its first texts ended.
        first_user: the first model that took part, if one has ended its part.
        span, trace_id: OpenTelemetry's root span, and the id of its trace if it is sampled.
    """

    def __init__(self, usage: UsageTable | None = None) -> None:
        self.start_s = time.time()
        self.key: str | None = None
        self.phases: list[Phase] = []
        self.used = Used()
        self.queue_s: float | None = None
        self.first_token_s: float | None = None
        self.decode_s: float | None = None
        self.id: str | None = None
        self.sampling: SamplingParams | None = None
        self.finish_reasons: list[str] = []
        self.first_user: User | None = None
        self.span: Any = None
        self.trace_id: str | None = None
        self._usage = usage
        self._users: set[User] = set()

    def add(self, phase: Phase) -> None:
        """Add a phase that is over."""
        if len(self.phases) < MAX_PHASES:
            self.phases.append(phase)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time within the context as a phase."""
        start_s = time.time()
        try:
            yield
        finally:
            self.add(Phase(name, start_s, time.time() - start_s))

    def note_finish(self, reason: str) -> None:
        """Note why a text ended."""
        if len(self.finish_reasons) < MAX_PHASES:
            self.finish_reasons.append(reason)

    @property
    def exemplar(self) -> dict[str, str] | None:
        """What a histogram says of the request."""
        return None if self.trace_id is None else {"trace_id": self.trace_id}

    def note_queue(self, seconds: float) -> None:
        """Note a wait in an engine's queue."""
        self.queue_s = max(seconds, self.queue_s or 0.0)

    def use(self, model: str, operation: str, used: Used) -> None:
        """Count what one of its parts has used, also after its end. Each model that takes part
        counts it as one request."""
        user = User(self.key, model, operation)
        used.num_requests = int(user not in self._users)
        self._users.add(user)
        self.first_user = self.first_user or user
        self.used.add(used)
        if self._usage is not None:
            self._usage.add(user, used)

    def log_fields(self) -> dict[str, Any]:
        """Fields for the access log; those that say nothing are left out."""
        used = self.used
        counts = {
            "num_prompt_tokens": used.input_tokens,
            "num_cached_tokens": used.cached_tokens,
            "num_generation_tokens": used.output_tokens,
        }
        times = {"queue_s": self.queue_s, "first_token_s": self.first_token_s}
        return {
            **({} if self.key is None else {"key": self.key}),
            **(self.exemplar or {}),
            **{name: number for name, number in counts.items() if number},
            **{name: round(time_s, 4) for name, time_s in times.items() if time_s is not None},
        }


def begin_trace(trace: RequestTrace) -> Token["RequestTrace | None"]:
    """Make it the trace of what runs in this context, until `end_trace`."""
    return _current.set(trace)


def end_trace(token: Token["RequestTrace | None"]) -> None:
    """Go back to the trace before."""
    _current.reset(token)


def current_trace() -> RequestTrace:
    """The trace of the current request. Outside of a request, a trace that is discarded."""
    return _current.get() or RequestTrace()


def as_text(phases: Sequence[Phase], start_s: float, depth: int = 0) -> str:
    """The tree of phases, one per line: when each began after `start_s`, and how long it took."""
    lines = []
    for phase in sorted(phases, key=lambda one: one.start_s):
        tokens = f", {phase.num_tokens} tokens" if phase.num_tokens else ""
        times = f"+{phase.start_s - start_s:.3f} s, {phase.duration_s:.3f} s"
        lines.append(f"{'  ' * depth}{phase.name}: {times}{tokens}")
        if phase.parts:
            lines.append(as_text(phase.parts, start_s, depth + 1))
    return "\n".join(lines)
