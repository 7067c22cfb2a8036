"""Asks the model for fresh prompts and seeds, reads its pictures, and counts what is right.

    python -m tools.demo_image_model.evaluate MODEL --num 500 --json docs/image_model.json

Shares are stored as (right, asked). Each part is written to the JSON file as soon as it is known,
and parts that are not measured again stay, so delete the file for a new model. `--parts` measures
only those parts. `docs/image_model.md` says how pictures are read.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tools.demo_image_model.classify import Reading, read
from tools.demo_image_model.questions import (
    ROUND,
    SUITES,
    Question,
    circle,
    judge,
    kind_of_phrase,
    match,
    placed,
)
from tools.demo_image_model.sampling import Sampler

GUIDANCE, STEPS = 3.0, 20
GUIDANCE_CURVE = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)
STEPS_CURVE = (5, 8, 10, 15, 20, 30)
PARTS = (*SUITES, "circles", "phrases")

Counts = dict[str, tuple[int, int]]
"""Pairs of (right, asked), by what was judged."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The evaluation of one model at one size, with its settings."""

    sampler: Sampler
    guidance: float
    steps: int

    def suite(self, name: str, num: int) -> Counts:
        """Counts over `num` questions of the suite."""
        questions = [SUITES[name](i) for i in range(num)]
        readings = self._read(questions)
        return tally([judge(q, r) for q, r in zip(questions, readings, strict=True)])

    def suites(self, num: int) -> dict[str, Counts]:
        """Counts of all suites."""
        return {name: self.suite(name, num) for name in SUITES}

    def circles(self, num: int) -> Counts:
        """Circles asked for alone: those recognised as a circle, and those that are `round`."""
        questions = [circle(i) for i in range(num)]
        verdicts = []
        for question, reading in zip(questions, self._read(questions), strict=True):
            found = match(question.asks, reading.objects)
            is_round = found is not None and found[0].unevenness <= ROUND
            verdicts.append({"circle": found is not None, "round": is_round})
        return tally(verdicts)

    def phrases(self, num: int) -> Counts:
        """Single objects at the stated place, by the kind of phrase."""
        questions, phrases = zip(*(placed(i) for i in range(num)), strict=True)
        return tally(
            [
                {kind_of_phrase(phrase): judge(question, reading)["place"]}
                for question, phrase, reading in zip(
                    questions, phrases, self._read(questions), strict=True
                )
            ]
        )

    def _read(self, questions: Sequence[Question]) -> list[Reading]:
        pictures = self.sampler.draw(
            [q.prompt for q in questions],
            [q.seed for q in questions],
            guidance=self.guidance,
            steps=self.steps,
        )
        return [read(picture) for picture in pictures]


def tally(verdicts: Sequence[dict[str, bool]]) -> Counts:
    """Sum up verdicts; parts that a prompt does not state are not counted."""
    counts: Counts = {}
    for verdict in verdicts:
        for name, right in verdict.items():
            before, asked = counts.get(name, (0, 0))
            counts[name] = before + right, asked + 1
    return counts


class Report:
    """The results so far, stored in a JSON file under one key."""

    def __init__(self, path: Path | None, key: str, settings: dict[str, Any]) -> None:
        self._path = path
        self._key = key
        self._results = dict(settings)

    def add(self, name: str, value: Any) -> None:
        """Store and print one result."""
        self._results[name] = value
        print(name, json.dumps(value), flush=True)
        if self._path is None:
            return
        known = json.loads(self._path.read_text()) if self._path.exists() else {}
        known[self._key] = known.get(self._key, {}) | self._results
        self._path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def evaluate(args: argparse.Namespace) -> None:
    """Measure everything that the arguments ask for."""
    started_s = time.monotonic()
    sampler = Sampler(args.model, size=args.size)
    evaluation = Evaluation(sampler, args.guidance, args.steps)
    settings = {"guidance": args.guidance, "steps": args.steps, "size": args.size}
    report = Report(args.json, f"images {args.size}", settings)
    parts: dict[str, Callable[[], Any]] = {
        **{name: partial(evaluation.suite, name, args.num) for name in SUITES},
        "circles": lambda: evaluation.circles(args.num),
        "phrases": lambda: evaluation.phrases(args.num),
    }
    assert tuple(parts) == PARTS
    for name in args.parts:
        report.add(name, parts[name]())
    if args.curve_num:
        report.add(
            "guidance_curve",
            {
                f"{g:g}": replace(evaluation, guidance=g).suites(args.curve_num)
                for g in GUIDANCE_CURVE
            },
        )
        report.add(
            "steps_curve",
            {f"{s}": replace(evaluation, steps=s).suites(args.curve_num) for s in STEPS_CURVE},
        )
    print(f"{time.monotonic() - started_s:.0f} s", flush=True)


def add_arguments(parser: argparse.ArgumentParser, *, guidance: float, asked: str) -> None:
    """Add the options of both evaluations, with the default guidance and what `--num` counts."""
    parser.add_argument("model", type=Path, help="diffusers folder")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--num", type=int, default=500, help=asked)
    parser.add_argument("--guidance", type=float, default=guidance)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser, guidance=GUIDANCE, asked="questions of each suite")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--curve-num", type=int, default=0, help="questions for each point of the curves"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    evaluate(args)


if __name__ == "__main__":
    main()
