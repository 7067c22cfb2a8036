"""Workloads: the requests and when to send them. Made before the run, to send cheaply."""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from loadtest.prompts import TokenEstimate, story_prompt

PEERS_NUM_REQUESTS = {1: 12, 16: 32, 32: 64}
PEERS_NUM_WORDS = 100
PEERS_OUTPUT_TOKENS = 64
WARMUP_STRIDE = 7_000_000_007
"""Distance between the seeds of warm-up and measured prompts, which are thus never equal."""

_SEED_STRIDE = 100_003  # more than the requests of any run, so that two seeds share no prompt


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """A request to send. `at_s` is its time after the start, None in a closed loop."""

    index: int
    prompt: str
    max_tokens: int
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests, sent by `concurrency` clients or, if that is None, at their own times.

    `parameters` are enough to make the same workload again.
    """

    name: str
    requests: list[PlannedRequest]
    concurrency: int | None
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TokenRange:
    """An inclusive range of token counts; `low == high` for a fixed count."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> "TokenRange":
        """Parse a range such as `128` or `64:256`. Raises ValueError."""
        low, _, high = text.partition(":")
        try:
            parsed = cls(int(low), int(high or low))
        except ValueError:
            raise ValueError(f"{text!r} is neither a token count nor LOW:HIGH") from None
        if not 1 <= parsed.low <= parsed.high:
            raise ValueError(f"{text!r}: the counts must be at least 1, the lower one first")
        return parsed

    def draw(self, rng: random.Random) -> int:
        return rng.randint(self.low, self.high)

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}:{self.high}"


def peers_workload(
    concurrency: int,
    seed: int,
    num_requests: int | None = None,
    *,
    num_words: int = PEERS_NUM_WORDS,
    output_tokens: int = PEERS_OUTPUT_TOKENS,
) -> Workload:
    """The workload that all engines are compared on: 100 random words in, 64 tokens out.

    Other lengths are for slower models and for long prompts. Words are counted, not
    tokens, so that every server gets the same prompts.
    """
    if num_requests is None:
        num_requests = PEERS_NUM_REQUESTS.get(concurrency, max(12, 2 * concurrency))
    requests = [
        PlannedRequest(i, story_prompt(seed * _SEED_STRIDE + i, num_words), output_tokens)
        for i in range(num_requests)
    ]
    parameters = {"seed": seed}
    if (num_words, output_tokens) != (PEERS_NUM_WORDS, PEERS_OUTPUT_TOKENS):
        parameters |= {"num_words": num_words, "output_tokens": output_tokens}
    return Workload("peers", requests, concurrency, parameters)


def closed_workload(
    concurrency: int,
    num_requests: int,
    prompt_tokens: TokenRange,
    output_tokens: TokenRange,
    seed: int,
    estimate: TokenEstimate,
) -> Workload:
    """A workload of `concurrency` clients that send the next request after each answer."""
    rng = random.Random(seed)
    lengths = [(prompt_tokens.draw(rng), output_tokens.draw(rng)) for _ in range(num_requests)]
    parameters = {
        "seed": seed,
        "prompt_tokens": str(prompt_tokens),
        "output_tokens": str(output_tokens),
    }
    requests = _requests(lengths, [None] * num_requests, seed, estimate)
    return Workload("closed", requests, concurrency, parameters)


def poisson_workload(
    rate: float,
    num_requests: int,
    prompt_tokens: TokenRange,
    output_tokens: TokenRange,
    seed: int,
    estimate: TokenEstimate,
) -> Workload:
    """A workload that sends `rate` requests per second, with exponential gaps, in any case."""
    rng = random.Random(seed)
    lengths = [(prompt_tokens.draw(rng), output_tokens.draw(rng)) for _ in range(num_requests)]
    arrivals, now = [], 0.0
    for _ in range(num_requests):
        arrivals.append(now)
        now += rng.expovariate(rate)
    parameters = {
        "seed": seed,
        "rate": rate,
        "prompt_tokens": str(prompt_tokens),
        "output_tokens": str(output_tokens),
    }
    return Workload("poisson", _requests(lengths, arrivals, seed, estimate), None, parameters)


@dataclass(frozen=True, slots=True)
class TraceRow:
    """A recorded request: its seconds after the first one, and its lengths."""

    at_s: float
    prompt_tokens: int
    output_tokens: int


def load_trace(path: Path) -> list[TraceRow]:
    """Rows of a `TIMESTAMP,ContextTokens,GeneratedTokens` file (the Azure LLM traces).

    Raises ValueError when columns are missing or a row cannot be read.
    """
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if not {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(reader.fieldnames or ()):
            raise ValueError("a trace needs columns TIMESTAMP, ContextTokens, GeneratedTokens")
        rows = list(reader)
    if not rows:
        raise ValueError("the trace has no rows")
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]) for row in rows]
    return [
        TraceRow(
            (time - times[0]).total_seconds(),
            int(row["ContextTokens"]),
            int(row["GeneratedTokens"]),
        )
        for time, row in zip(times, rows, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class TraceScale:
    """Scales that fit a recorded trace to the server under test.

    `speed` 2 replays twice as fast. `length` multiplies both token counts; a request that is then
    longer than `max_context` first gets a shorter prompt, then a shorter output.
    """

    speed: float = 1.0
    length: float = 1.0
    max_context: int = 2048

    def lengths(self, row: TraceRow) -> tuple[int, int]:
        output = min(max(1, round(row.output_tokens * self.length)), self.max_context - 1)
        prompt = min(max(1, round(row.prompt_tokens * self.length)), self.max_context - output)
        return prompt, output


def trace_workload(
    rows: Sequence[TraceRow],
    scale: TraceScale,
    seed: int,
    estimate: TokenEstimate,
    name: str = "",
) -> Workload:
    """A workload with a trace's arrival times and lengths. Its texts are made up."""
    lengths = [scale.lengths(row) for row in rows]
    arrivals = [(row.at_s - rows[0].at_s) / scale.speed for row in rows]
    parameters = {
        "seed": seed,
        "trace": name,
        "speed": scale.speed,
        "length_scale": scale.length,
        "max_context": scale.max_context,
    }
    return Workload("trace", _requests(lengths, arrivals, seed, estimate), None, parameters)


def _requests(
    lengths: Sequence[tuple[int, int]],
    arrivals: Sequence[float | None],
    seed: int,
    estimate: TokenEstimate,
) -> list[PlannedRequest]:
    return [
        PlannedRequest(
            i, story_prompt(seed * _SEED_STRIDE + i, estimate.num_words(prompt)), output, at_s
        )
        for i, ((prompt, output), at_s) in enumerate(zip(lengths, arrivals, strict=True))
    ]
