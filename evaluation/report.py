"""Runs and comparisons as JSON."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from evaluation.difference import compare
from evaluation.interval import LEVEL, Interval, score_interval
from evaluation.problem import EvaluationProblem
from evaluation.record import Record
from evaluation.resampling import Groups
from evaluation.run_file import Run
from evaluation.scores import Extraction, Score, default_scores

Report = dict[str, Any]


def run_report(
    run: Run, scores: Sequence[Score], extraction: Extraction | None = None, *, seed: int = 0
) -> Report:
    """The scores of a run with their intervals, and the score of each item.

    Args:
        seed: of the resampling; the same seed gives the same intervals.
    """
    scores = _fitting(scores, run)
    records = _scored(run.records, extraction)
    if not records:
        raise EvaluationProblem(f"{run.path} has no answers yet; run `tandem eval run` again")
    groups = Groups([record.item.group for record in records])
    found: dict[str, Any] = {}
    items: list[dict[str, Any]] = [{"id": record.item.id} for record in records]
    for score in scores:
        rows = score.rows(records)
        interval = score_interval(rows, groups, seed=seed)
        found[score.name] = {
            "meaning": score.meaning,
            "value": rows.value,
            **_interval(interval),
        }
        if rows.signature is not None:
            found[score.name]["signature"] = rows.signature
        for item, value in zip(items, rows.per_item, strict=True):
            item[score.name] = float(value)
    return {
        "format": "tandem-eval-report",
        "file": str(run.path),
        "task": dict(run.task),
        "asking": dict(run.asking),
        "extract": None if extraction is None else extraction.pattern.pattern,
        "num_items": run.num_items,
        "num_answered": len(records),
        "num_cut_off": run.num_cut_off,
        "num_groups": None if groups.are_single else groups.num,
        "level": LEVEL,
        "scores": found,
        "items": items,
        "notes": _notes(run),
    }


def comparison_report(
    first: Run,
    second: Run,
    scores: Sequence[Score],
    extraction: Extraction | None = None,
    *,
    seed: int = 0,
) -> Report:
    """The differences between two runs over the items that both have answered."""
    if first.asked != second.asked:
        raise EvaluationProblem(
            f"{first.path} has {first.asked} and {second.path} has {second.asked}; "
            "compare runs that asked for the same"
        )
    scores = _fitting(scores, first)
    pairs = _paired(first, second)
    ours, theirs = (_scored(side, extraction) for side in zip(*pairs, strict=True))
    groups = Groups([record.item.group for record, _ in pairs])
    found = {}
    for score in scores:
        one = compare(score.rows(ours), score.rows(theirs), groups, seed=seed)
        # The interval's own entries take the place of the object.
        found[score.name] = {**asdict(one), **_interval(one.interval)}
    return {
        "format": "tandem-eval-comparison",
        "files": [str(run.path) for run in (first, second)],
        "task": dict(first.task),
        "askings": [dict(run.asking) for run in (first, second)],
        "extract": None if extraction is None else extraction.pattern.pattern,
        "num_items": first.num_items,
        "num_compared": len(pairs),
        "num_groups": None if groups.are_single else groups.num,
        "level": LEVEL,
        "scores": found,
        "notes": [f"{run.path}: {note}" for run in (first, second) for note in _notes(run)],
    }


def _fitting(scores: Sequence[Score], run: Run) -> Sequence[Score]:
    """The scores, or those of the run's kind if none are named."""
    for score in scores:
        if score.asked != run.asked:
            raise EvaluationProblem(
                f"{score.name} needs {score.asked}, and {run.path} has {run.asked}; "
                "name other scores, or make another run"
            )
    return scores or default_scores(run.asked)


def _paired(first: Run, second: Run) -> list[tuple[Record, Record]]:
    """The records of items that both runs have answered."""
    others = {record.item.id: record for record in second.records}
    pairs = [
        (record, others[record.item.id]) for record in first.records if record.item.id in others
    ]
    if not pairs:
        raise EvaluationProblem(
            f"{first.path} and {second.path} have no item in common; compare runs of one task"
        )
    for record, other in pairs:
        if record.item != other.item:
            raise EvaluationProblem(
                f"the item {record.item.id!r} is not the same in {first.path} and {second.path}; "
                "compare runs of one version of a task"
            )
    return pairs


def _scored(records: Sequence[Record], extraction: Extraction | None) -> Sequence[Record]:
    """The records with the part of each answer that is scored."""
    if extraction is None:
        return records
    return [
        replace(
            record,
            answer=replace(record.answer, text=extraction.of_text(record.answer.text)),
        )
        for record in records
    ]


def _interval(interval: Interval) -> dict[str, Any]:
    return {"low": interval.low, "high": interval.high, "interval": interval.method}


def _notes(run: Run) -> list[str]:
    """What makes the numbers doubtful."""
    notes = []
    missing = run.num_items - len(run.records)
    if missing:
        notes.append(f"{missing} of {run.num_items} items have no answer and are left out")
    if run.num_cut_off:
        notes.append(f"{run.num_cut_off} of {len(run.records)} texts were cut off at max_tokens")
    if len(run.fingerprints) > 1:
        notes.append(
            "the server's model or settings changed between answers: there are "
            f"{len(run.fingerprints)} values of system_fingerprint"
        )
    return notes
