"""Asks for the answers to all items of a task, several at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from evaluation.endpoint import RequestProblem
from evaluation.record import Answer
from evaluation.run_file import RunFile
from evaluation.task import Item, Task

Ask = Callable[[Item], Awaitable[Answer]]


@dataclass(slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        failed: the items that the server refused to answer, and why.
    """

    num_answered: int = 0
    failed: list[tuple[Item, RequestProblem]] = field(default_factory=list)


async def answer_all(
    task: Task,
    ask: Ask,
    file: RunFile,
    *,
    concurrency: int,
    on_end: Callable[[Outcome], None],
) -> Outcome:
    """Ask for what the file lacks and write each answer as it comes.

    Args:
        on_end: called after each item.

    Raises:
        RequestProblem: the server does not answer, or a refusal concerns all items.
    """
    remaining = iter([item for item in task.items if item.id not in file.answered])
    outcome = Outcome()
    fatal: list[RequestProblem] = []

    async def work(items: Iterator[Item]) -> None:
        for item in items:
            if fatal:
                return
            try:
                file.append(item, await ask(item))
                outcome.num_answered += 1
            except RequestProblem as problem:
                if problem.concerns_all:
                    fatal.append(problem)
                    return
                outcome.failed.append((item, problem))
            on_end(outcome)

    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(work(remaining))
    if fatal:
        raise fatal[0]
    return outcome
