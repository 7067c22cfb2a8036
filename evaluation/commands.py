"""The work of `tandem eval run`, `report` and `compare`: from options to tables."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import typer
from rich.console import Console, RenderableType

from evaluation.asking import Asker, Asking
from evaluation.endpoint import Endpoint
from evaluation.plot import plot_runs
from evaluation.problem import EvaluationProblem
from evaluation.progress import shown_progress
from evaluation.report import Report, comparison_report, run_report
from evaluation.run_file import RunFile, load_run
from evaluation.runner import Outcome, answer_all
from evaluation.scores import Extraction, chosen_scores
from evaluation.tables import comparison_table, runs_table
from evaluation.task import Task

EXIT_INCOMPLETE = 1


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """Where to ask.

    Attributes:
        timeout_s: seconds to wait for an answer.
        concurrency: how many items are asked at once.
    """

    url: str
    api_key: str | None
    timeout_s: float
    concurrency: int

    def endpoint(self) -> Endpoint:
        return Endpoint(self.url, self.api_key, timeout_s=self.timeout_s)


@dataclass(frozen=True, slots=True)
class Shown:
    """How results are shown.

    Attributes:
        scores: names of scores; those of the run's kind if there are none.
        extract: the regular expression of the part of an answer that is scored.
    """

    scores: tuple[str, ...] = ()
    extract: str | None = None
    as_json: bool = False
    plot: Path | None = None
    seed: int = 0

    def show(self, report: Report | list[Report], table: RenderableType) -> None:
        if self.as_json:
            typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        else:
            Console(markup=False, emoji=False, highlight=False).print(table)


def run_command(
    address: ServerAddress, task: Task, asking: Asking, output: Path, shown: Shown
) -> int:
    """Ask, write the answers, show the scores. Returns the exit code: 1 if items were refused.

    Args:
        asking: with an empty name of the model to take the server's first.
    """
    chosen_scores(shown.scores)
    Extraction.of(shown.extract)
    asking.check(task)
    outcome = asyncio.run(_run(address, task, asking, output))
    if outcome.failed:
        item, problem = outcome.failed[0]
        refused = f"{len(outcome.failed)} of {len(task.items)} items were refused"
        typer.echo(f"{refused}, the first of them {item.id}: {problem}", err=True)
    report_command([output], shown)
    return EXIT_INCOMPLETE if outcome.failed else 0


async def _run(address: ServerAddress, task: Task, asking: Asking, output: Path) -> Outcome:
    async with address.endpoint() as endpoint:
        model = asking.model or await endpoint.first_model()
        return await run_task(
            endpoint, task, replace(asking, model=model), output, address.concurrency
        )


async def run_task(
    endpoint: Endpoint, task: Task, asking: Asking, output: Path, concurrency: int
) -> Outcome:
    """Complete the file of a run, and show the progress."""
    with RunFile(output, task, asking) as file:
        kept = len(file.answered)
        with shown_progress(f"{task.name}, {asking.model}", len(task.items)) as advance:

            def on_end(outcome: Outcome) -> None:
                failed = len(outcome.failed)
                advance(kept + outcome.num_answered + failed, failed)

            ask = Asker(endpoint, asking).ask
            return await answer_all(task, ask, file, concurrency=concurrency, on_end=on_end)


def report_command(paths: Sequence[Path], shown: Shown) -> int:
    """Show the scores of runs."""
    scores, extraction = chosen_scores(shown.scores), Extraction.of(shown.extract)
    reports = [run_report(load_run(path), scores, extraction, seed=shown.seed) for path in paths]
    if shown.plot is not None:
        plot_runs(reports, shown.plot)
    shown.show(reports[0] if len(reports) == 1 else reports, runs_table(reports))
    return 0


def compare_command(first: Path, second: Path, shown: Shown) -> int:
    """Show the differences between two runs."""
    scores, extraction = chosen_scores(shown.scores), Extraction.of(shown.extract)
    runs = load_run(first), load_run(second)
    if first.resolve() == second.resolve():
        raise EvaluationProblem("the two files are one; compare two runs")
    report = comparison_report(*runs, scores, extraction, seed=shown.seed)
    shown.show(report, comparison_table(report))
    return 0
