"""The text of an item, as a file of training data may hold it."""

import re

from evaluation.task import Item, Task


def texts_of(task: Task) -> list[str]:
    """The text of each item: its prompt and the first right answer.

    Raises:
        EvaluationProblem: an item is a conversation.
    """
    task.check_has("prompt", "a test for contamination")
    return [_text(item) for item in task.items]


def halves(text: str) -> tuple[str, str]:
    """The words of the first half, and the rest."""
    words = re.findall(r"\s*\S+", text)
    middle = (len(words) + 1) // 2
    return "".join(words[:middle]), "".join(words[middle:])


def _text(item: Item) -> str:
    assert item.prompt is not None
    right = item.choices[item.answer : item.answer + 1] if item.answer is not None else ()
    answers = right or item.references
    if not answers:
        return item.prompt
    gap = "" if item.prompt[-1].isspace() else " "
    return f"{item.prompt}{gap}{answers[0]}"
