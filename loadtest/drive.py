"""Sends a workload of texts or images through a client, in a closed or an open loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from loadtest.client import CompletionClient
from loadtest.interrupt import Interrupt
from loadtest.prompts import TokenEstimate, story_prompt
from loadtest.record import RequestRecord
from loadtest.workload import (
    PEERS_NUM_WORDS,
    PEERS_OUTPUT_TOKENS,
    WARMUP_STRIDE,
    Planned,
    PlannedRequest,
    Timed,
    Workload,
)

PlannedContra = TypeVar("PlannedContra", bound=Timed, contravariant=True)
Record = TypeVar("Record")


class Client(Protocol[PlannedContra, Record]):
    """Sends requests; see `CompletionClient`."""

    def encode(self, planned: PlannedContra) -> bytes: ...

    def new_record(self, planned: PlannedContra) -> Record: ...

    async def send(self, request: bytes, record: Record, started: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Record]):
    """The records of all sent requests, in planned order; `interrupted` if some were not sent."""

    records: list[Record]
    wall_s: float
    num_planned: int
    interrupted: bool


async def drive(
    workload: Workload[Planned],
    client: Client[Planned, Record],
    *,
    interrupt: Interrupt | None = None,
    on_end: Callable[[Record], None] | None = None,
) -> Outcome[Record]:
    """Send the whole workload and wait for every answer.

    `interrupt` ends the run early: what is in flight is cancelled and counted as interrupted. The
    wall time runs from the start to the end of the last request.
    """
    jobs: list[_Job[Planned, Record]] = [
        _Job(planned, client.encode(planned)) for planned in workload.requests
    ]
    started = time.perf_counter()

    async def send(job: _Job[Planned, Record]) -> None:
        job.record = client.new_record(job.planned)
        await client.send(job.request, job.record, started)
        if on_end is not None:
            on_end(job.record)

    if workload.concurrency is not None:
        run = _closed_loop(jobs, workload.concurrency, send)
    else:
        run = _open_loop(jobs, started, send)
    interrupted = False
    if interrupt is None:
        await run
    else:
        interrupted = await interrupt.run(run)
    wall_s = time.perf_counter() - started
    records = [job.record for job in jobs if job.record is not None]
    return Outcome(records, wall_s, len(jobs), interrupted)


@dataclass(slots=True)
class _Job(Generic[Planned, Record]):
    planned: Planned
    request: bytes
    record: Record | None = None


async def _closed_loop(
    jobs: list[_Job[Planned, Record]],
    concurrency: int,
    send: Callable[[_Job[Planned, Record]], Coroutine[Any, Any, None]],
) -> None:
    """Start all clients together; each sends its next request when its last one has ended."""

    async def client_loop(remaining: Iterator[_Job[Planned, Record]]) -> None:
        for job in remaining:
            await send(job)

    remaining = iter(jobs)
    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(jobs))):
            group.create_task(client_loop(remaining))


async def _open_loop(
    jobs: list[_Job[Planned, Record]],
    started: float,
    send: Callable[[_Job[Planned, Record]], Coroutine[Any, Any, None]],
) -> None:
    """Send every request at its own time, however many are still unanswered."""
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            assert job.planned.at_s is not None
            await asyncio.sleep(started + job.planned.at_s - time.perf_counter())
            group.create_task(send(job))


async def warm_up(
    client: CompletionClient,
    num_requests: int,
    concurrency: int,
    seed: int,
    *,
    num_words: int = PEERS_NUM_WORDS,
    output_tokens: int = PEERS_OUTPUT_TOKENS,
) -> None:
    """Send a few unmeasured requests, by default of the standard workload.

    Raises RuntimeError with the server's own message if one fails.
    """
    prompts = [story_prompt(seed + WARMUP_STRIDE * (i + 1), num_words) for i in range(num_requests)]
    requests = [PlannedRequest(i, prompt, output_tokens) for i, prompt in enumerate(prompts)]
    outcome = await drive(Workload("warm-up", requests, concurrency), client)
    for record in outcome.records:
        if record.error:
            raise RuntimeError(f"a warm-up request failed: {record.error}")


async def probe_tokens(client: CompletionClient, seed: int) -> TokenEstimate:
    """Ask the server how many tokens prompts of 20 and 120 words have.

    Raises RuntimeError when a probe fails, ValueError when the server reports no usage.
    """
    probes = []
    for num_words in (20, 120):
        prompt = story_prompt(seed + WARMUP_STRIDE * num_words, num_words)
        record = RequestRecord(0, 1)
        request = client.encode(PlannedRequest(0, prompt, 1))
        await client.send(request, record, time.perf_counter())
        if record.error:
            raise RuntimeError(f"a probe of the prompt length failed: {record.error}")
        probes.append((num_words, record.prompt_tokens or 0))
    return TokenEstimate.fit(probes)
