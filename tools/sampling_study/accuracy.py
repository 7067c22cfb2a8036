"""Accuracy by temperature: what `tandem eval` runs, reports and compares, at each temperature.

Each item is asked several times with seeds of its own. The answers to one item depend on each
other, so they are a group, and intervals come from resampled groups.
"""

from pathlib import Path
from typing import Any

from evaluation.asking import Asking
from evaluation.commands import run_task
from evaluation.endpoint import Endpoint
from evaluation.run_file import Run, load_run
from loadtest.machine import provenance
from tools.sampling_study.server import Server
from tools.scored_tasks import OPTIONS, SHORT_ANSWER, SUMS, ScoredTask

RUNS = Path("build/sampling-study")
"""The folder of the runs' files; what was measured before an interruption is not asked again."""
TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0)
REPEATS = 5


async def accuracy(server: Server) -> dict[str, Any]:
    """The accuracy at each temperature, and its difference from that at temperature 0."""
    tasks = {task.name: await _rows(server, task) for task in (SUMS, OPTIONS)}
    return {**provenance("", "tools.sampling_study"), "repeats": REPEATS, "tasks": tasks}


async def _rows(server: Server, task: ScoredTask) -> list[dict[str, Any]]:
    runs = [await _run(server, task, t) for t in TEMPERATURES]
    return [
        {
            "temperature": temperature,
            **task.scored(run),
            "compared": task.compared(runs[0], run),
        }
        for temperature, run in zip(TEMPERATURES, runs, strict=True)
    ]


async def _run(server: Server, task: ScoredTask, temperature: float) -> Run:
    path = _run_path(task, temperature)
    asking = Asking(server.model, temperature=temperature, max_tokens=SHORT_ANSWER, seed=1)
    async with Endpoint(server.url) as endpoint:
        outcome = await run_task(
            endpoint, task.load().repeated(REPEATS), asking, path, concurrency=32
        )
    if outcome.failed:
        raise outcome.failed[0][1]
    return load_run(path)


def _run_path(task: ScoredTask, temperature: float) -> Path:
    RUNS.mkdir(parents=True, exist_ok=True)
    return RUNS / f"{task.name}-{temperature:g}.jsonl"
