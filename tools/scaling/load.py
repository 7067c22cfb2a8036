"""Requests like those of a chat service: arrivals and lengths of Azure's trace, with drawn texts.

The trace (`tests/data/README.md`) has no texts, so who shares a beginning with whom is drawn:

- With probability `FOLLOWS` a request goes on with an earlier conversation of the same copy of the
  trace: the one with the longest text, answer included, that fits into the request's prompt and was
  complete, at the trace's own speed, `PAUSE_S` before. Each conversation goes on once.
- Any other request begins a conversation. It starts with one of `NUM_SYSTEM_PROMPTS` system
  prompts, drawn by Zipf's law with exponent 1, of 64 to 1,024 tokens (log-uniform), as far as the
  request's prompt is longer. All copies share these.
- The rest of each prompt is new.

For more replicas there are more copies of the trace, each with its own draws and rotated by a
random time; the speed of all is set so that each replica gets the same number of requests a second.
"""

import csv
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

TRACE = Path(__file__).parents[2] / "tests" / "data" / "azure_conv_trace.csv"
FOLLOWS = 0.6
PAUSE_S = 5.0
NUM_SYSTEM_PROMPTS = 200
ANSWER_TOKEN = 1
"""What replicas of this simulation write. Drawn tokens differ from it and from 0, which ends."""
TOKEN_IDS = range(2, 250)
"""The drawn tokens: few enough to be a byte each, and enough that no two blocks are equal."""
_TOKENS_PER_S = 20.0
"""The speed at which an answer is taken to have been written in the trace."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A request of the trace."""

    arrival_s: float
    prompt_len: int
    answer_len: int


@dataclass(slots=True)
class Sent:
    """A request to the simulated cluster."""

    arrival_s: float
    prompt: bytes
    """Its tokens, one byte each."""
    answer_len: int
    num_shared: int
    """The tokens that it has in common with an earlier text, by the law above."""


def read_trace(max_len: int) -> list[TraceRow]:
    """The trace, without requests that are longer than the model takes."""
    with TRACE.open() as file:
        rows = [
            TraceRow(
                datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp(),
                max(1, int(row["ContextTokens"])),
                max(1, int(row["GeneratedTokens"])),
            )
            for row in csv.DictReader(file)
        ]
    start_s = rows[0].arrival_s
    return [
        TraceRow(row.arrival_s - start_s, row.prompt_len, row.answer_len)
        for row in rows
        if row.prompt_len + row.answer_len <= max_len
    ]


def draw_load(
    trace: Sequence[TraceRow],
    num_replicas: int,
    rate: float,
    num_requests: int,
    rng: random.Random,
) -> list[Sent]:
    """Requests for a cluster in the order of their arrival.

    Args:
        rate: requests a second for each replica.
        num_requests: at most as many as all copies have.
    """
    num_copies = max(1, round(num_replicas * rate * trace[-1].arrival_s / len(trace)))
    speed = num_replicas * rate * trace[-1].arrival_s / (len(trace) * num_copies)
    systems = [rng.randbytes(round(64 * 16 ** rng.random())) for _ in range(NUM_SYSTEM_PROMPTS)]
    systems = [_as_tokens(one) for one in systems]
    weights = [1 / rank for rank in range(1, NUM_SYSTEM_PROMPTS + 1)]
    sent: list[Sent] = []
    most_per_copy = -(-num_requests // num_copies)
    for _ in range(num_copies):
        rows = _rotated(trace, rng.randrange(len(trace)))[:most_per_copy]
        sent += _Conversations(rng, systems, weights).texts(rows, speed)
    sent.sort(key=lambda one: one.arrival_s)
    return sent[:num_requests]


def _rotated(trace: Sequence[TraceRow], first: int) -> list[TraceRow]:
    """The trace from one of its requests on, with what is before it at the end."""
    end_s, start_s = trace[-1].arrival_s, trace[first].arrival_s
    later = [(row.arrival_s - start_s, row) for row in trace[first:]]
    before = [(row.arrival_s + end_s - start_s, row) for row in trace[:first]]
    return [TraceRow(at, row.prompt_len, row.answer_len) for at, row in later + before]


class _Conversations:
    """The texts of one copy of the trace."""

    def __init__(
        self, rng: random.Random, systems: Sequence[bytes], weights: Sequence[float]
    ) -> None:
        self._rng = rng
        self._systems = systems
        self._weights = weights
        self._open: list[tuple[int, float, bytes]] = []
        """The texts that may go on, by length, with the time from which they may."""

    def texts(self, rows: Sequence[TraceRow], speed: float) -> list[Sent]:
        return [self._text(row, speed) for row in rows]

    def _text(self, row: TraceRow, speed: float) -> Sent:
        before = self._earlier(row) if self._rng.random() < FOLLOWS else None
        if before is None:
            [system] = self._rng.choices(self._systems, self._weights)
            before = system[: row.prompt_len - 1]
        prompt = before + _as_tokens(self._rng.randbytes(row.prompt_len - len(before)))
        whole = prompt + bytes([ANSWER_TOKEN]) * row.answer_len
        from_s = row.arrival_s + row.answer_len / _TOKENS_PER_S + PAUSE_S
        entry = len(whole), from_s, whole
        self._open.insert(bisect_right(self._open, entry), entry)
        return Sent(row.arrival_s / speed, prompt, row.answer_len, len(before))

    def _earlier(self, row: TraceRow) -> bytes | None:
        """The conversation that a request goes on with; None if there is none."""
        place = bisect_right(self._open, (row.prompt_len - 1, float("inf"), b"")) - 1
        while place >= 0 and self._open[place][1] > row.arrival_s:
            place -= 1
        return self._open.pop(place)[2] if place >= 0 else None


def _as_tokens(data: bytes) -> bytes:
    return bytes(TOKEN_IDS[one % len(TOKEN_IDS)] for one in data)
