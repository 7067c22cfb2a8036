"""The three kinds of measured runs on a running image server, as result documents.

Each consists of phases: in a phase one workload is sent while the machine is watched.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from loadtest.client import CompletionClient, Target
from loadtest.drive import drive, warm_up
from loadtest.image_client import ImageClient, ImageTarget
from loadtest.image_plan import ImageScenario, ScenarioKind
from loadtest.image_record import ImageRecord, summarise_images
from loadtest.image_workload import (
    ImageSettings,
    PlannedImage,
    StepRange,
    behind_images,
    closed_images,
)
from loadtest.interrupt import Interrupt
from loadtest.launch import Probe, ServerCommand
from loadtest.measure import drive_watched, measure
from loadtest.workload import WARMUP_STRIDE, Workload, peers_workload

_WARMUP_STEPS = StepRange(4, 4)
_PROBE_STEPS = StepRange(2, 2)
_BACKGROUND_IMAGES = 2000  # more than any server can draw while text is measured


@dataclass(frozen=True, slots=True)
class Running:
    """A running server. `pid` is the root of its processes."""

    server: ServerCommand
    pid: int
    interrupt: Interrupt

    @property
    def client(self) -> ImageClient:
        server = self.server
        return ImageClient(ImageTarget(server.url, server.model, models=server.models))


def image_probe(server: ServerCommand, settings: ImageSettings) -> Probe:
    """A probe that asks for one picture of two steps."""
    client = ImageClient(ImageTarget(server.url, server.model))
    probing = ImageSettings(settings.size, _PROBE_STEPS, settings.guidance)
    (planned,) = closed_images(probing, 1, 1, seed=0).requests
    request = client.encode(planned)

    async def probe() -> ImageRecord:
        record = client.new_record(planned)
        await client.send(request, record, time.perf_counter())
        return record

    return probe


async def measure_scenario(running: Running, scenario: ImageScenario, seed: int) -> dict[str, Any]:
    """Warm up, then measure; returns `{"phases": {name: phase}}`.

    Raises RuntimeError when a warm-up request fails and CancelledError after an interrupt.
    """
    await _warm_up(running, scenario, seed + WARMUP_STRIDE)
    if scenario.kind is ScenarioKind.IMAGES:
        phases = await _images(running, scenario, seed)
    elif scenario.kind is ScenarioKind.BEHIND:
        phases = await _behind(running, scenario, seed)
    else:
        phases = await _text(running, scenario, seed)
    return {"phases": phases}


def worst_cpu(run: dict[str, Any]) -> dict[str, float]:
    """The machine's load in the phase that other processes disturbed most."""
    loads: list[dict[str, float]] = [phase["cpu"] for phase in run["phases"].values()]
    return max(loads, key=lambda cpu: cpu["others"])


async def _warm_up(running: Running, scenario: ImageScenario, seed: int) -> None:
    """Warm up at the scenario's concurrency, so that no batch size is new to the server."""
    if not scenario.warmup:
        return
    settings = ImageSettings(scenario.settings.size, _WARMUP_STEPS, scenario.settings.guidance)
    clients = scenario.num_long if scenario.kind is ScenarioKind.BEHIND else scenario.clients
    outcome = await drive(closed_images(settings, clients, scenario.warmup, seed), running.client)
    for record in outcome.records:
        if record.error:
            raise RuntimeError(f"a warm-up picture failed: {record.error}")


async def _images(running: Running, scenario: ImageScenario, seed: int) -> dict[str, Any]:
    workload = closed_images(scenario.settings, scenario.clients, scenario.num_requests, seed)
    return {"images": await _phase(running, workload)}


async def _behind(running: Running, scenario: ImageScenario, seed: int) -> dict[str, Any]:
    solo = closed_images(scenario.settings, 1, scenario.num_requests, seed)
    phases = {"solo": await _phase(running, solo)}
    for i in range(scenario.num_requests):
        workload = behind_images(
            scenario.settings,
            scenario.num_long,
            scenario.long_steps,
            scenario.delay_s,
            seed + i + 1,
        )
        phases[f"behind {i + 1}"] = await _phase(running, workload)
    return phases


async def _phase(running: Running, workload: Workload[PlannedImage]) -> dict[str, Any]:
    outcome, load = await drive_watched(
        workload, running.client, interrupt=running.interrupt, pids=[running.pid]
    )
    if outcome.interrupted or running.interrupt.requested:
        raise asyncio.CancelledError
    return {
        "workload": {"name": workload.name, **workload.parameters},
        "summary": summarise_images(outcome.records, outcome.wall_s, outcome.num_planned),
        **load,
        "requests": [record.to_row() for record in outcome.records],
    }


async def _text(running: Running, scenario: ImageScenario, seed: int) -> dict[str, Any]:
    client = CompletionClient(Target(running.server.url, scenario.text_model))
    await warm_up(client, min(scenario.num_requests, 2), 1, seed)
    alone = await _text_phase(running, client, scenario, seed)
    async with _images_meanwhile(running, scenario, seed) as meanwhile:
        await asyncio.sleep(scenario.lead_s)
        began = time.perf_counter()
        beside = await _text_phase(running, client, scenario, seed + 1)
        ended = time.perf_counter()
    return {"alone": alone, "beside": beside | {"images": meanwhile.to_json(began, ended)}}


async def _text_phase(
    running: Running, client: CompletionClient, scenario: ImageScenario, seed: int
) -> dict[str, Any]:
    workload = peers_workload(1, seed, scenario.num_requests)
    phase = await measure(workload, client, interrupt=running.interrupt, pids=[running.pid])
    if phase.pop("partial") or running.interrupt.requested:
        raise asyncio.CancelledError
    return phase


@dataclass(slots=True)
class _Meanwhile:
    """The finished pictures in the order of their ends, each with its `time.perf_counter()`."""

    ended: list[tuple[float, ImageRecord]] = field(default_factory=list)

    def on_end(self, record: ImageRecord) -> None:
        self.ended.append((time.perf_counter(), record))

    def check(self) -> None:
        """Raises RuntimeError if a picture failed, because the load was then too low."""
        for _, record in self.ended:
            if record.error is not None:
                raise RuntimeError(f"a picture beside the text failed: {record.error}")

    def to_json(self, began: float, ended: float) -> dict[str, Any]:
        """The pictures that ended between the two times, as JSON."""
        records = [record for at, record in self.ended if began <= at <= ended]
        return {
            "summary": summarise_images(records, ended - began, len(records)),
            "requests": [record.to_row() for record in records],
        }


@contextlib.asynccontextmanager
async def _images_meanwhile(
    running: Running, scenario: ImageScenario, seed: int
) -> AsyncIterator[_Meanwhile]:
    """Keep clients asking for pictures until the block ends, then cancel what is in flight."""
    meanwhile = _Meanwhile()
    workload = closed_images(scenario.settings, scenario.clients, _BACKGROUND_IMAGES, seed)
    task = asyncio.create_task(_drive_all(running.client, workload, meanwhile))
    try:
        yield meanwhile
        meanwhile.check()
        if task.done():
            raise RuntimeError("the pictures beside the text ended too early")
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _drive_all(
    client: ImageClient, workload: Workload[PlannedImage], meanwhile: _Meanwhile
) -> None:
    await drive(workload, client, on_end=meanwhile.on_end)
