"""Turns the options of one run into its workload."""

import random
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from loadtest.client import CompletionClient
from loadtest.drive import probe_tokens
from loadtest.workload import (
    TokenRange,
    TraceScale,
    Workload,
    closed_workload,
    load_trace,
    peers_workload,
    poisson_workload,
    trace_workload,
)


class Scenario(StrEnum):
    PEERS = "peers"
    CLOSED = "closed"
    POISSON = "poisson"
    TRACE = "trace"


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """The options of a workload; each scenario uses some of them.

    peers: concurrency, num_requests. closed: these and both token ranges. poisson: rate,
    num_requests, both token ranges. trace: trace, scale, num_requests.
    """

    scenario: Scenario
    seed: int
    concurrency: int = 1
    num_requests: int | None = None
    rate: float = 1.0
    prompt_tokens: TokenRange = TokenRange(128, 128)
    output_tokens: TokenRange = TokenRange(64, 64)
    trace: Path | None = None
    scale: TraceScale = TraceScale()


async def create_workload(options: ScenarioOptions, client: CompletionClient) -> Workload:
    """Make the workload. Unless it is the fixed one, first learn how the server counts tokens.

    Raises ValueError for options that do not fit together, RuntimeError when the server fails.
    """
    if options.scenario is Scenario.PEERS:
        return peers_workload(options.concurrency, options.seed, options.num_requests)
    rows = []
    if options.scenario is Scenario.TRACE:
        if options.trace is None:
            raise ValueError("the trace scenario needs --trace FILE")
        rows = load_trace(options.trace)[: options.num_requests]
    estimate = await probe_tokens(client, options.seed)
    if options.scenario is Scenario.TRACE:
        name = options.trace.name if options.trace else ""
        return trace_workload(rows, options.scale, options.seed, estimate, name)
    num_requests = options.num_requests or max(12, 2 * options.concurrency)
    lengths = (options.prompt_tokens, options.output_tokens)
    if options.scenario is Scenario.CLOSED:
        return closed_workload(options.concurrency, num_requests, *lengths, options.seed, estimate)
    return poisson_workload(options.rate, num_requests, *lengths, options.seed, estimate)


def random_seed() -> int:
    """A random seed for a run without one, so that prompts are new. The results name it."""
    return random.SystemRandom().randrange(1_000_000)
