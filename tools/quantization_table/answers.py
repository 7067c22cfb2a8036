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
from evaluation.run_file import Run, load_run
from tools.quantization_table.formats import ORIGINAL, Format, Model
from tools.quantization_table.speed import FIRST_PORT, serve
from tools.scored_tasks import CHOICES, SHORT_ANSWER, SUMS

ASKED = (
    (SUMS, Asking("measured", max_tokens=SHORT_ANSWER)),
    (CHOICES, Asking("measured", asked="choices", endpoint="completions")),
)
"""How the items of each task are asked."""


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
                yield (
                    one.name,
                    {
                        task.name: task.compared(original[task.name], runs[task.name])
                        for task, _ in ASKED
                    },
                )


async def _asked(one: Format, path: Path, folder: Path) -> dict[str, Run]:
    async with AsyncExitStack() as stack:
        served = await serve(stack, one, path, FIRST_PORT, folder)
        async with Endpoint(served.client.target.url) as endpoint:
            for task, asking in ASKED:
                await run_task(endpoint, task.load(), asking, folder / task.name, concurrency=32)
    return {task.name: load_run(folder / task.name) for task, _ in ASKED}
