"""Workloads: the requests and when to send them. Made before the run, to send cheaply."""

import random
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

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


class Timed(Protocol):
    """A request with the time to send it; see `PlannedRequest`."""

    @property
    def at_s(self) -> float | None: ...


Planned = TypeVar("Planned", bound=Timed)


@dataclass(frozen=True, slots=True)
class Workload(Generic[Planned]):
    """Requests, sent by `concurrency` clients or, if that is None, at their own times.

    `parameters` are enough to make the same workload again.
    """

    name: str
    requests: list[Planned]
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
) -> Workload[PlannedRequest]:
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


@dataclass(frozen=True, slots=True)
class Lengths:
    """How many requests a workload has, and the ranges from which `seed` draws their lengths."""

    num_requests: int
    prompt_tokens: TokenRange
    output_tokens: TokenRange
    seed: int


def closed_workload(
    concurrency: int, lengths: Lengths, estimate: TokenEstimate
) -> Workload[PlannedRequest]:
    """A workload of `concurrency` clients that send the next request after each answer."""
    requests = _requests(lengths, random.Random(lengths.seed), estimate)
    return Workload("closed", requests, concurrency, _parameters(lengths))


def poisson_workload(
    rate: float, lengths: Lengths, estimate: TokenEstimate
) -> Workload[PlannedRequest]:
    """A workload that sends `rate` requests per second, with exponential gaps, in any case."""
    rng = random.Random(lengths.seed)
    requests, now = [], 0.0
    for request in _requests(lengths, rng, estimate):
        requests.append(replace(request, at_s=now))
        now += rng.expovariate(rate)
    return Workload("poisson", requests, None, _parameters(lengths) | {"rate": rate})


def _parameters(lengths: Lengths) -> dict[str, Any]:
    return {
        "seed": lengths.seed,
        "prompt_tokens": str(lengths.prompt_tokens),
        "output_tokens": str(lengths.output_tokens),
    }


def _requests(
    lengths: Lengths, rng: random.Random, estimate: TokenEstimate
) -> list[PlannedRequest]:
    ranges = [
        (lengths.prompt_tokens.draw(rng), lengths.output_tokens.draw(rng))
        for _ in range(lengths.num_requests)
    ]
    return [
        PlannedRequest(
            i, story_prompt(lengths.seed * _SEED_STRIDE + i, estimate.num_words(prompt)), output
        )
        for i, (prompt, output) in enumerate(ranges)
    ]
