"""Tasks: the questions of a JSONL file, one item per line."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation.problem import EvaluationProblem

FIELDS = ("id", "group", "prompt", "messages", "references", "choices", "answer", "meta")


@dataclass(frozen=True, slots=True)
class Item:
    """One question.

    Attributes:
        id: unique in its task; by default the number of its line.
        prompt: what is asked, or None if there are messages.
        messages: a conversation to answer, in OpenAI's form.
        references: acceptable answers.
        choices: possible answers, one of which is right.
        answer: the number of the right choice, from 0.
        group: items with the same one depend on each other, such as questions about one text.
    """

    id: str
    prompt: str | None = None
    messages: tuple[Mapping[str, Any], ...] = ()
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer: int | None = None
    group: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields of a line that have a value."""
        values = {
            "id": self.id,
            "group": self.group,
            "prompt": self.prompt,
            "messages": list(self.messages),
            "references": list(self.references),
            "choices": list(self.choices),
            "answer": self.answer,
        }
        return {name: value for name, value in values.items() if value not in (None, [])}


@dataclass(frozen=True, slots=True)
class Task:
    """The items of a file.

    Attributes:
        name: the file's name without its ending.
        digest: SHA-256 of the file.
        lines: the number of each item's line in the file.
    """

    path: Path
    name: str
    digest: str
    items: tuple[Item, ...]
    lines: tuple[int, ...]

    def check_has(self, field: str, purpose: str) -> None:
        """Raise if an item lacks a field that something needs."""
        for item, line in zip(self.items, self.lines, strict=True):
            if not getattr(item, field):
                raise EvaluationProblem(
                    f"{self.path}:{line}: {purpose} needs `{field}`, and this item has none"
                )

    def first(self, limit: int | None) -> "Task":
        """The task with only its first items; it counts as another task."""
        if limit is None or limit >= len(self.items):
            return self
        digest = f"{self.digest}, first {limit}"
        return Task(self.path, self.name, digest, self.items[:limit], self.lines[:limit])

    def repeated(self, times: int) -> "Task":
        """The task with each item several times, as a group; it counts as another task."""
        if times == 1:
            return self
        items = [
            replace(item, id=f"{item.id}, {number}", group=item.group or item.id)
            for item in self.items
            for number in range(1, times + 1)
        ]
        lines = [line for line in self.lines for _ in range(times)]
        digest = f"{self.digest}, {times} times"
        return Task(self.path, self.name, digest, tuple(items), tuple(lines))


def load_task(path: Path) -> Task:
    """Read a task.

    Raises:
        EvaluationProblem: the file cannot be read, or an item is wrong; names its line.
    """
    data = read_bytes(path)
    items: list[Item] = []
    lines: list[int] = []
    seen: dict[str, int] = {}
    for line, entry in json_lines(path, data):
        item = item_of(entry, f"{path}:{line}", default_id=str(line))
        if item.id in seen:
            raise EvaluationProblem(
                f"{path}:{line}: the id {item.id!r} is that of line {seen[item.id]}; "
                "give each item an id of its own"
            )
        seen[item.id] = line
        items.append(item)
        lines.append(line)
    if not items:
        raise EvaluationProblem(f"{path}: the file has no items; write one JSON object per line")
    digest = hashlib.sha256(data).hexdigest()
    return Task(path, path.stem, digest, tuple(items), tuple(lines))


def read_bytes(path: Path) -> bytes:
    """The contents of a file of the user."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EvaluationProblem(f"{path}: cannot be read: {error.strerror}") from None


def json_lines(path: Path, data: bytes) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with the numbers of their lines; empty lines are left out."""
    found = []
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise EvaluationProblem(f"{path}:{number}: this line is not JSON: {error}") from None
        if not isinstance(entry, dict):
            raise EvaluationProblem(
                f"{path}:{number}: this line is not a JSON object, such as "
                '{"prompt": "2 + 2 =", "references": ["4"]}'
            )
        found.append((number, entry))
    return found


def item_of(entry: Mapping[str, Any], where: str, *, default_id: str) -> Item:
    """The item of a line.

    Args:
        where: file and line, for messages.
    """
    unknown = [name for name in entry if name not in FIELDS]
    if unknown:
        raise EvaluationProblem(
            f"{where}: unknown field {unknown[0]!r}; the fields are {', '.join(FIELDS)}, and "
            "`meta` takes anything else"
        )
    prompt, messages = entry.get("prompt"), _messages(entry.get("messages"), where)
    if (prompt is None) == (not messages):
        raise EvaluationProblem(f"{where}: an item needs either `prompt` or `messages`")
    if prompt is not None and not (isinstance(prompt, str) and prompt.strip()):
        raise EvaluationProblem(f"{where}: `prompt` must be a text that is not empty")
    references = entry.get("references", [])
    references = [references] if isinstance(references, str) else references
    choices = _texts(entry.get("choices", []), "choices", where)
    return Item(
        id=_label(entry.get("id", default_id), "id", where),
        prompt=prompt,
        messages=messages,
        references=_texts(references, "references", where),
        choices=choices,
        answer=_answer(entry.get("answer"), choices, where),
        group=None if entry.get("group") is None else _label(entry["group"], "group", where),
    )


def _label(value: Any, field: str, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise EvaluationProblem(f"{where}: `{field}` must be a text or a whole number")
    return str(value)


def _texts(value: Any, field: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise EvaluationProblem(f"{where}: `{field}` must be a list of texts")
    return tuple(value)


def _messages(value: Any, where: str) -> tuple[Mapping[str, Any], ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(
        isinstance(one, dict) and isinstance(one.get("role"), str) for one in value
    ):
        raise EvaluationProblem(
            f"{where}: `messages` must be a list such as "
            '[{"role": "user", "content": "What is 2 + 2?"}]'
        )
    return tuple(value)


def _answer(value: Any, choices: Sequence[str], where: str) -> int | None:
    """The number of the right choice, which may be given as its text."""
    if not choices:
        if value is not None:
            raise EvaluationProblem(
                f"{where}: `answer` names one of `choices`, and there are none; "
                "write acceptable answers into `references`"
            )
        return None
    if len(choices) < 2 or len(set(choices)) < len(choices) or "" in choices:
        raise EvaluationProblem(
            f"{where}: `choices` needs at least two different texts, none of them empty"
        )
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    raise EvaluationProblem(
        f"{where}: `answer` is {value!r}; it must be the number of the right choice, from 0 to "
        f"{len(choices) - 1}, or its text"
    )
