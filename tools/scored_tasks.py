"""The tasks of docs/evaluation that several studies ask, and how their answers are scored."""

from dataclasses import dataclass
from pathlib import Path

from evaluation.report import Report, comparison_report, run_report
from evaluation.run_file import Run
from evaluation.scores import Extraction, chosen_scores
from evaluation.task import Task, load_task

_FOLDER = Path(__file__).parents[1] / "docs" / "evaluation"


@dataclass(frozen=True, slots=True)
class ScoredTask:
    """A task with one score.

    Attributes:
        pattern: of the part of an answer that is scored; None for all of it.
    """

    name: str
    score: str
    pattern: str | None = None

    def load(self) -> Task:
        return load_task(_FOLDER / f"{self.name}.jsonl")

    def scored(self, run: Run) -> Report:
        """The score of a run, with its interval."""
        found: Report = run_report(run, chosen_scores([self.score]), self._extraction)
        return dict(found["scores"][self.score])

    def compared(self, first: Run, second: Run) -> Report:
        """The paired difference between two runs."""
        scores = chosen_scores([self.score])
        found = comparison_report(first, second, scores, self._extraction)
        return dict(found["scores"][self.score])

    @property
    def _extraction(self) -> Extraction | None:
        return Extraction.of(self.pattern)


SUMS = ScoredTask("arithmetic", "exact_match", r"-?\d+")
OPTIONS = ScoredTask("options", "contains")
CHOICES = ScoredTask("choices", "multiple_choice_per_byte")
SHORT_ANSWER = 32
"""The most tokens of an answer to a sum or a question with options."""
