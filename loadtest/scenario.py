"""Turns the options of one run into its workload."""

import random
from dataclasses import dataclass
from enum import StrEnum

from loadtest.client import CompletionClient
from loadtest.drive import probe_tokens
from loadtest.workload import (
    Lengths,
    PlannedRequest,
    TokenRange,
    Workload,
    closed_workload,
    peers_workload,
    poisson_workload,
)


class Scenario(StrEnum):
    PEERS = "peers"
    CLOSED = "closed"
    POISSON = "poisson"


@dataclass(frozen=True, slots=True)
class ScenarioOptions:
    """The options of a workload; each scenario uses some of them.

    peers: concurrency, num_requests. closed: these and both token ranges. poisson: rate,
    num_requests, both token ranges.
    """

    scenario: Scenario
    seed: int
    concurrency: int = 1
    num_requests: int | None = None
    rate: float = 1.0
    prompt_tokens: TokenRange = TokenRange(128, 128)
    output_tokens: TokenRange = TokenRange(64, 64)


async def create_workload(
    options: ScenarioOptions, client: CompletionClient
) -> Workload[PlannedRequest]:
    """Make the workload. Unless it is the fixed one, first learn how the server counts tokens.

    Raises ValueError when the server counts no tokens, RuntimeError when it fails.
    """
    if options.scenario is Scenario.PEERS:
        return peers_workload(options.concurrency, options.seed, options.num_requests)
    estimate = await probe_tokens(client, options.seed)
    num_requests = options.num_requests or max(12, 2 * options.concurrency)
    lengths = Lengths(num_requests, options.prompt_tokens, options.output_tokens, options.seed)
    if options.scenario is Scenario.CLOSED:
        return closed_workload(options.concurrency, lengths, estimate)
    return poisson_workload(options.rate, lengths, estimate)


def random_seed() -> int:
    """A random seed for a run without one, so that prompts are new. The results name it."""
    return random.SystemRandom().randrange(1_000_000)
