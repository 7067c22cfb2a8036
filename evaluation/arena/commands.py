"""The work of `tandem eval arena` and `ratings`."""

import asyncio
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from evaluation.arena.judge import Judge
from evaluation.arena.matches import Match, judge_all, matches_of
from evaluation.arena.person import VOTER, vote_in_terminal
from evaluation.arena.ratings import ratings_report
from evaluation.arena.tables import plot_ratings, ratings_table
from evaluation.arena.vote import Vote
from evaluation.arena.vote_file import VoteFile, load_votes
from evaluation.asking import Asking
from evaluation.commands import ServerAddress, Shown, run_task
from evaluation.problem import EvaluationProblem
from evaluation.progress import shown_progress
from evaluation.run_file import Run, load_run
from evaluation.task import Task


@dataclass(frozen=True, slots=True)
class Contest:
    """Who answers what, and who judges.

    Attributes:
        asking: how the models are asked; its own model does not count.
        judge: a model; without one a person votes in the terminal.
        judge_address: where the judge model is served.
    """

    task: Task
    models: tuple[str, ...]
    asking: Asking
    address: ServerAddress
    judge: str | None
    judge_address: ServerAddress

    def check(self) -> None:
        """Raise if there is nothing to compare."""
        if len(set(self.models)) < max(2, len(self.models)):
            raise EvaluationProblem(
                "an arena needs two or more different models; name each with --model"
            )


def arena_command(contest: Contest, folder: Path, shown: Shown) -> int:
    """Have the models answer, collect votes, show the ratings. All files are in the folder, and
    what it has already is not asked again."""
    contest.check()
    folder.mkdir(parents=True, exist_ok=True)
    runs = asyncio.run(_answered(contest, folder))
    with VoteFile(folder / "votes.jsonl", _source(contest, runs)) as file:
        matches = matches_of(runs)
        if contest.judge is None:
            console = Console(stderr=True)
            vote_in_terminal(matches, file, console, seed=shown.seed)
        else:
            asyncio.run(_judged(contest, contest.judge, matches, file))
        votes = list(file.votes)
    return _show(votes, shown)


def ratings_command(paths: Sequence[Path], shown: Shown) -> int:
    """Show the ratings that the votes of several files lead to."""
    return _show([vote for path in paths for vote in load_votes(path)], shown)


def _show(votes: Sequence[Vote], shown: Shown) -> int:
    report = ratings_report(votes, seed=shown.seed)
    if shown.plot is not None:
        plot_ratings(report, shown.plot)
    shown.show(report, ratings_table(report))
    return 0


async def _answered(contest: Contest, folder: Path) -> list[Run]:
    """The answers of each model to the prompts."""
    runs = []
    async with contest.address.endpoint() as endpoint:
        for model in contest.models:
            path = folder / f"answers-{_file_name(model)}.jsonl"
            asking = replace(contest.asking, model=model)
            concurrency = contest.address.concurrency
            outcome = await run_task(endpoint, contest.task, asking, path, concurrency)
            if outcome.failed:
                item, problem = outcome.failed[0]
                raise EvaluationProblem(
                    f"{model} did not answer {len(outcome.failed)} prompts, the first of them "
                    f"{item.id}: {problem}"
                )
            runs.append(load_run(path))
    return runs


async def _judged(contest: Contest, judge: str, matches: Sequence[Match], file: VoteFile) -> None:
    async with contest.judge_address.endpoint() as endpoint:
        with shown_progress(f"votes of {judge}", len(matches)) as advance:
            await judge_all(
                matches,
                Judge(endpoint, judge),
                file,
                concurrency=contest.judge_address.concurrency,
                advance=advance,
            )


def _source(contest: Contest, runs: Sequence[Run]) -> dict[str, object]:
    """What the votes are about: the digest changes with any answer."""
    answers = hashlib.sha256()
    for run in runs:
        for record in run.records:
            answers.update(f"{run.model}\0{record.item.id}\0{record.answer.text}\0".encode())
    return {
        "task": contest.task.name,
        "models": list(contest.models),
        "judge": contest.judge or VOTER,
        "answers_sha256": answers.hexdigest(),
    }


def _file_name(model: str) -> str:
    """A model's name as part of a file's; different names stay different."""
    plain = re.sub(r"[^\w.-]+", "-", model)
    return plain if plain == model else f"{plain}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"
