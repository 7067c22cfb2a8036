"""Has every pair of models judged on every prompt, in both orders."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from evaluation.arena.judge import Judge
from evaluation.arena.vote import Vote
from evaluation.arena.vote_file import VoteFile
from evaluation.progress import Advance
from evaluation.run_file import Run
from evaluation.task import Item


@dataclass(frozen=True, slots=True)
class Match:
    """Two answers to one prompt, in the order in which they are shown."""

    item: Item
    first: str
    second: str
    first_text: str
    second_text: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.item.id, self.first, self.second


def matches_of(runs: Sequence[Run]) -> list[Match]:
    """All pairs of answers in both orders; prompts that a model did not answer are left out for
    it."""
    found: dict[str, list[Match]] = {}
    for first, second in permutations(runs, 2):
        others = {record.item.id: record.answer.text for record in second.records}
        for record in first.records:
            item, text = record.item, record.answer.text
            if item.id in others:
                match = Match(item, first.model, second.model, text, others[item.id])
                found.setdefault(item.id, []).append(match)
    return [match for matches in found.values() for match in matches]


async def judge_all(
    matches: Sequence[Match], judge: Judge, file: VoteFile, *, concurrency: int, advance: Advance
) -> None:
    """Ask the judge for the votes that the file lacks, and write each as it comes.

    Raises:
        RequestProblem: the judge does not answer.
    """
    known = {(vote.prompt, vote.first, vote.second) for vote in file.votes}
    remaining = iter([match for match in matches if match.key not in known])

    async def work(matches: Iterator[Match]) -> None:
        for match in matches:
            messages = match.item.messages or ({"role": "user", "content": match.item.prompt},)
            winner, reason = await judge.compare(messages, match.first_text, match.second_text)
            file.append(Vote(*match.key, winner, judge.model, reason))
            advance(len(file.votes), sum(vote.winner is None for vote in file.votes))

    workers = [asyncio.create_task(work(remaining)) for _ in range(concurrency)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
