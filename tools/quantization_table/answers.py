"""Measures how formats answer the tasks of docs/evaluation, as `tandem eval` does."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from evaluation.asking import Asking
from evaluation.commands import run_task
from evaluation.endpoint import Endpoint
from evaluation.report import comparison_report
from evaluation.run_file import Run, load_run
from evaluation.scores import Extraction, chosen_scores
from evaluation.task import load_task
from tools.quantization_table.formats import ORIGINAL, Format, Model
from tools.quantization_table.page import DOCS
from tools.quantization_table.speed import FIRST_PORT, serve

ASKED = {
    "arithmetic": (Asking("measured", max_tokens=32), "exact_match", r"-?\d+"),
    "choices": (
        Asking("measured", asked="choices", endpoint="completions"),
        "multiple_choice_per_byte",
        None,
    ),
}
"""How the items of a task are asked, their score, and what part of an answer it looks at."""


def measure_answers(
    folder: Path, model: Model, done: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each format's name and its scores against the original's, greedy.

    Args:
        done: formats to skip.
    """
    with TemporaryDirectory() as answers:
        original: Mapping[str, Run] = {}
        for number, (one, path) in enumerate(model.formats(folder)):
            if one is ORIGINAL or one.name not in done:
                (its := Path(answers) / str(number)).mkdir()
                runs = asyncio.run(_asked(one, path, its))
                original = original or runs
                yield one.name, {name: _compared(name, original[name], runs[name]) for name in runs}


async def _asked(one: Format, path: Path, folder: Path) -> dict[str, Run]:
    async with AsyncExitStack() as stack:
        served = await serve(stack, one, path, FIRST_PORT, folder)
        async with Endpoint(served.client.target.url) as endpoint:
            for name, (asking, _, _) in ASKED.items():
                task = load_task(DOCS / "evaluation" / f"{name}.jsonl")
                await run_task(endpoint, task, asking, folder / name, concurrency=32)
    return {name: load_run(folder / name) for name in ASKED}


def _compared(name: str, original: Run, run: Run) -> dict[str, Any]:
    _, score, pattern = ASKED[name]
    report = comparison_report(original, run, chosen_scores([score]), Extraction.of(pattern))
    found: dict[str, Any] = report["scores"][score]
    return found
