"""The file of a run: a line about the run, then a line per answer, in the order of arrival.

Each line is written at once, so a run that was killed goes on where it ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.asking import Asking
from evaluation.line_file import LineFile, check_format
from evaluation.problem import EvaluationProblem
from evaluation.record import Answer, Record
from evaluation.scores import Asked
from evaluation.task import Item, Task, item_of, json_lines, read_bytes

FORMAT = "tandem-eval-run"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Run:
    """The contents of such a file.

    Attributes:
        task: name and digest of the task, and how many items it has.
        asking: how the model was asked.
        records: what was answered, in the order of the task.
    """

    path: Path
    task: Mapping[str, Any]
    asking: Mapping[str, Any]
    records: tuple[Record, ...]

    @property
    def asked(self) -> Asked:
        asked: Asked = self.asking["asked"]
        return asked

    @property
    def model(self) -> str:
        return str(self.asking["model"])

    @property
    def num_items(self) -> int:
        return int(self.task["items"])

    @property
    def num_cut_off(self) -> int:
        """How many texts ended because they reached `max_tokens`."""
        return sum(record.answer.finish_reason == "length" for record in self.records)

    @property
    def fingerprints(self) -> set[str]:
        return {record.answer.fingerprint for record in self.records if record.answer.fingerprint}


class RunFile(LineFile):
    """A file that gets the answers of a run.

    Attributes:
        answered: ids of the items whose answers it has already.
    """

    def __init__(self, path: Path, task: Task, asking: Asking) -> None:
        self._numbers = {item.id: number for number, item in enumerate(task.items)}
        self.answered: set[str] = set()
        header = _header(task, asking)

        def take_in(path: Path) -> None:
            run = load_run(path)
            _check_same(path, run, header)
            self.answered = {record.item.id for record in run.records}

        super().__init__(path, header, take_in)

    def append(self, item: Item, answer: Answer) -> None:
        line = {"number": self._numbers[item.id], "item": item.to_json()}
        self.write({**line, "answer": answer.to_json()})


def load_run(path: Path) -> Run:
    """Read the file of a run.

    Raises:
        EvaluationProblem: it is none, or a line is wrong.
    """
    data = read_bytes(path)
    check_format(path, data, FORMAT)
    lines = json_lines(path, data)
    header = lines[0][1]
    if header.get("version") != VERSION:
        raise EvaluationProblem(
            f"{path}: version {header.get('version')} of the format; this program reads {VERSION}"
        )
    numbered = []
    for line, entry in lines[1:]:
        where = f"{path}:{line}"
        try:
            item = item_of(entry["item"], where, default_id="")
            numbered.append((entry["number"], Record(item, Answer.from_json(entry["answer"]))))
        except (KeyError, TypeError, AttributeError):
            raise EvaluationProblem(
                f"{where}: this line is no answer; delete it, and the item is asked again"
            ) from None
    numbered.sort(key=lambda one: one[0])
    if len({number for number, _ in numbered}) < len(numbered):
        raise EvaluationProblem(
            f"{path}: an item was answered twice, by two runs at once; delete the file, run again"
        )
    records = tuple(record for _, record in numbered)
    return Run(path, header["task"], header["asking"], records)


def _header(task: Task, asking: Asking) -> dict[str, Any]:
    described = {"name": task.name, "sha256": task.digest, "items": len(task.items)}
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": described,
        "asking": asking.to_json(),
    }


def _check_same(path: Path, run: Run, header: Mapping[str, Any]) -> None:
    advice = "name another --output, or delete the file"
    if run.task["sha256"] != header["task"]["sha256"]:
        raise EvaluationProblem(
            f"{path} has answers to another version of a task ({run.task['name']}, "
            f"{run.num_items} items); {advice}"
        )
    before, now = dict(run.asking), header["asking"]
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise EvaluationProblem(
                f"{path} has answers with {name} {before.get(name)!r}, and this run has "
                f"{now.get(name)!r}; {advice}"
            )
