"""Accuracy by temperature: what `tandem eval` runs, reports and compares, at each temperature.

Each item is asked several times with seeds of its own. The answers to one item depend on each
other, so they are a group, and intervals come from resampled groups.
"""

from pathlib import Path
from typing import Any

from evaluation.asking import Asking
from evaluation.commands import run_task
from evaluation.endpoint import Endpoint
from evaluation.report import comparison_report, run_report
from evaluation.run_file import Run, load_run
from evaluation.scores import Extraction, chosen_scores
from evaluation.task import load_task
from loadtest.machine import provenance
from tools.sampling_study.server import Server

TASKS = Path(__file__).parents[2] / "docs" / "evaluation"
RUNS = "/tmp/sampling-study-{}-{:g}.jsonl"
"""The files of the runs; what was measured before an interruption is not asked again."""
TEMPERATURES = (0.0, 0.3, 0.5, 0.7, 1.0, 1.3, 1.6, 2.0)
REPEATS = 5
MAX_TOKENS = 32
SCORED = {"arithmetic": ("exact_match", r"-?\d+"), "options": ("contains", None)}
"""The score of each task, and what part of an answer it looks at."""


async def accuracy(server: Server) -> dict[str, Any]:
    """The accuracy at each temperature, and its difference from that at temperature 0."""
    tasks = {name: await _rows(server, name) for name in SCORED}
    return {**provenance("", "tools.sampling_study"), "repeats": REPEATS, "tasks": tasks}


async def _rows(server: Server, name: str) -> list[dict[str, Any]]:
    score, pattern = SCORED[name]
    scores, extraction = chosen_scores([score]), Extraction.of(pattern)
    runs = [await _run(server, name, t) for t in TEMPERATURES]
    return [
        {
            "temperature": temperature,
            **run_report(run, scores, extraction)["scores"][score],
            "compared": comparison_report(runs[0], run, scores, extraction)["scores"][score],
        }
        for temperature, run in zip(TEMPERATURES, runs, strict=True)
    ]


async def _run(server: Server, name: str, temperature: float) -> Run:
    path = Path(RUNS.format(name, temperature))
    task = load_task(TASKS / f"{name}.jsonl").repeated(REPEATS)
    asking = Asking(server.model, temperature=temperature, max_tokens=MAX_TOKENS, seed=1)
    async with Endpoint(server.url) as endpoint:
        outcome = await run_task(endpoint, task, asking, path, concurrency=32)
    if outcome.failed:
        raise outcome.failed[0][1]
    return load_run(path)
