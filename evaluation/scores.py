"""The table of scores: names, what they mean, how they are computed."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from evaluation.choice_scores import is_likeliest, is_likeliest_per_byte
from evaluation.corpus_scores import bleu_rows, chrf_rows
from evaluation.problem import EvaluationProblem
from evaluation.record import Record
from evaluation.rouge import rouge_1, rouge_2, rouge_l
from evaluation.score_rows import ScoreRows, mean_rows, share_rows
from evaluation.task import Item
from evaluation.text_scores import PairScore, best_of, contains, exact_match, exact_match_squad, f1

Asked = Literal["answers", "choices"]
"""What a run asks for: texts, or the log-likelihood of each choice."""
RowsOf = Callable[[Sequence[Record]], ScoreRows]


@dataclass(frozen=True, slots=True)
class Score:
    """A way to score a run.

    Attributes:
        maximum: the best value; 0 is the worst.
    """

    name: str
    meaning: str
    asked: Asked
    rows: RowsOf
    maximum: float = 1.0

    def written(self, value: float, *, sign: bool = False) -> str:
        """A value or a difference of values for people."""
        digits = 3 if self.maximum == 1.0 else 1
        return f"{value:{'+' if sign else ''}.{digits}f}"


def _share(score: PairScore) -> RowsOf:
    """The share of answers whose score is 1, which is otherwise 0."""
    return lambda records: share_rows(_against_references(score, records))


def _mean(score: PairScore) -> RowsOf:
    return lambda records: mean_rows(_against_references(score, records))


def _against_references(score: PairScore, records: Sequence[Record]) -> list[float]:
    return [best_of(score, record.answer.text, record.item.references) for record in records]


def _corpus(rows_of: Callable[[Sequence[str], Sequence[Sequence[str]]], ScoreRows]) -> RowsOf:
    def rows(records: Sequence[Record]) -> ScoreRows:
        return rows_of(
            [record.answer.text for record in records],
            [record.item.references for record in records],
        )

    return rows


def _likeliest(records: Sequence[Record]) -> ScoreRows:
    return share_rows([is_likeliest(*_likelihoods(record)) for record in records])


def _likeliest_per_byte(records: Sequence[Record]) -> ScoreRows:
    return share_rows(
        [is_likeliest_per_byte(*_likelihoods(record), record.item.choices) for record in records]
    )


def _likelihoods(record: Record) -> tuple[Sequence[float], int]:
    assert record.answer.loglikelihoods is not None and record.item.answer is not None
    return record.answer.loglikelihoods, record.item.answer


_ALL = (
    Score(
        "exact_match",
        "share of answers equal to a reference, but for white space",
        "answers",
        _share(exact_match),
    ),
    Score(
        "exact_match_squad",
        "the same without case, punctuation and English articles",
        "answers",
        _share(exact_match_squad),
    ),
    Score(
        "contains",
        "share of answers in which a reference occurs, whatever the case",
        "answers",
        _share(contains),
    ),
    Score("f1", "mean F1 of words, as SQuAD counts them", "answers", _mean(f1)),
    Score("rouge1", "mean F-measure of words", "answers", _mean(rouge_1)),
    Score("rouge2", "mean F-measure of pairs of words", "answers", _mean(rouge_2)),
    Score("rougeL", "mean F-measure of the longest common subsequence", "answers", _mean(rouge_l)),
    Score("bleu", "BLEU of all answers together", "answers", _corpus(bleu_rows), 100.0),
    Score("chrf", "chrF of all answers together", "answers", _corpus(chrf_rows), 100.0),
    Score(
        "multiple_choice",
        "share of items whose right choice has the highest log-likelihood",
        "choices",
        _likeliest,
    ),
    Score(
        "multiple_choice_per_byte",
        "the same by log-likelihood per byte of the choice",
        "choices",
        _likeliest_per_byte,
    ),
)
SCORES: Mapping[str, Score] = {score.name: score for score in _ALL}


def chosen_scores(names: Sequence[str]) -> tuple[Score, ...]:
    """The scores with these names, which must ask for the same of the model."""
    for name in names:
        if name not in SCORES:
            raise EvaluationProblem(
                f"there is no score {name!r}; the scores are {', '.join(SCORES)}"
            )
    scores = tuple(SCORES[name] for name in dict.fromkeys(names))
    if len({score.asked for score in scores}) > 1:
        raise EvaluationProblem(
            "one run asks for texts or for the likelihoods of choices, not for both; "
            "make two runs, one with the scores multiple_choice…, one with the others"
        )
    return scores


def asked_by(scores: Sequence[Score], items: Sequence[Item]) -> Asked:
    """What must be asked for these scores. Without any it depends on whether all items have
    choices."""
    if scores:
        return scores[0].asked
    return "choices" if all(item.choices for item in items) else "answers"


def default_scores(asked: Asked) -> tuple[Score, ...]:
    """What is shown unless scores are named."""
    if asked == "answers":
        return (SCORES["exact_match"],)
    return tuple(score for score in SCORES.values() if score.asked == "choices")


@dataclass(frozen=True, slots=True)
class Extraction:
    """The part of an answer that is scored: the last match of a pattern, or its first group.

    An answer without a match is scored as an empty text.
    """

    pattern: re.Pattern[str]

    @classmethod
    def of(cls, pattern: str | None) -> "Extraction | None":
        """The extraction of an option's value."""
        if pattern is None:
            return None
        try:
            return cls(re.compile(pattern))
        except re.error as error:
            raise EvaluationProblem(
                f"--extract {pattern!r} is no regular expression: {error}"
            ) from None

    def of_text(self, text: str) -> str:
        found = ""
        for match in self.pattern.finditer(text):
            found = match[1] if self.pattern.groups else match[0]
        return found or ""
