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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tools.demo_image_model.classify import Reading, read
from tools.demo_image_model.palette import BACKGROUNDS, COLOURS, PLACES, SHAPES
from tools.demo_image_model.questions import (
    ROUND,
    SEED,
    SUITES,
    Ask,
    Question,
    circle,
    judge,
    kind_of_phrase,
    match,
    negated,
    placed,
)
from tools.demo_image_model.render import render
from tools.demo_image_model.sampling import Sampler
from tools.demo_image_model.scenes import draw_scene, scene_rng

GUIDANCE, STEPS = 3.0, 20
GUIDANCE_CURVE = (1.0, 2.0, 3.0, 4.0, 5.0, 7.0)
STEPS_CURVE = (5, 8, 10, 15, 20, 30)
PARTS = ("autoencoder", *SUITES, "circles", "phrases", "negative", "diversity")
CURVE_SUITES = ("single", "double", "held_out")

Counts = dict[str, tuple[int, int]]
"""Pairs of (right, asked), by what was judged."""


class Evaluation:
    """The evaluation of one model at one size."""

    def __init__(self, sampler: Sampler, *, guidance: float, steps: int) -> None:
        self.sampler = sampler
        self.guidance = guidance
        self.steps = steps

    def suite(
        self, name: str, num: int, *, guidance: float | None = None, steps: int | None = None
    ) -> Counts:
        """Counts over `num` questions of the suite."""
        questions = [SUITES[name](i) for i in range(num)]
        readings = self._read(questions, guidance=guidance, steps=steps)
        return tally([judge(q, r) for q, r in zip(questions, readings, strict=True)])

    def curve_point(
        self, num: int, *, guidance: float | None = None, steps: int | None = None
    ) -> dict[str, Counts]:
        """Counts of the suites that the curves show, with one setting changed."""
        return {
            name: self.suite(name, num, guidance=guidance, steps=steps) for name in CURVE_SUITES
        }

    def autoencoder(self, num: int) -> Counts:
        """Scenes that are read correctly after encoding and decoding, the limit for any prompt.

        `small` and `large`: those with one object of that size.
        """
        scenes = [draw_scene(scene_rng(SEED + 5, i)) for i in range(num)]
        pictures = self.sampler.reconstruct(render(scenes, self.sampler.size))
        verdicts = []
        for scene, picture in zip(scenes, pictures, strict=True):
            asks = tuple(Ask(item.colour, item.shape) for item in scene.items)
            right = match(asks, read(picture).objects) is not None
            verdicts.append({"scenes": right})
            if len(scene.items) == 1:
                verdicts[-1][scene.items[0].size] = right
        return tally(verdicts)

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

    def negative(self, num: int) -> Counts:
        """Counts of the negated colour, with and without the negative prompt."""
        questions, colours = zip(*(negated(i) for i in range(num)), strict=True)
        plain = [Question(q.prompt, q.seed, ()) for q in questions]
        return {
            "with": (_colour_hits(self._read(questions), colours), num),
            "without": (_colour_hits(self._read(plain), colours), num),
        }

    def diversity(self, num: int) -> dict[str, float]:
        """The evenness over seeds of what a prompt leaves open, from 0 (always one) to 1 (even).

        `pixels` is the mean difference, of 255, between pictures of neighbouring seeds of one
        prompt. At least two seeds.
        """
        seeds = [SEED + i for i in range(num)]
        spreads: dict[str, list[str | None]] = {"colour": [], "background": [], "place": []}
        pictures = self._draw(["a circle"] * num, seeds)
        for reading in map(read, pictures):
            spreads["background"].append(reading.background)
            for seen in reading.objects[:1]:
                spreads["colour"].append(seen.colour)
                spreads["place"].append(seen.place)
        shapes = [
            seen.shape
            for picture in self._draw(["red"] * num, seeds)
            for seen in read(picture).objects
            if seen.colour == "red"
        ]
        pairs = self._draw(["a red circle"] * num, seeds).astype(np.float32)
        return {
            "colour": evenness(spreads["colour"], len(COLOURS)),
            "background": evenness(spreads["background"], len(BACKGROUNDS)),
            "place": evenness(spreads["place"], len(PLACES)),
            "shape": evenness(shapes, len(SHAPES)),
            "pixels": float(np.abs(np.diff(pairs, axis=0)).mean()),
        }

    def _read(
        self,
        questions: Sequence[Question],
        *,
        guidance: float | None = None,
        steps: int | None = None,
    ) -> list[Reading]:
        pictures = self.sampler.draw(
            [q.prompt for q in questions],
            [q.seed for q in questions],
            negatives=[q.negative_prompt for q in questions],
            guidance=self.guidance if guidance is None else guidance,
            steps=self.steps if steps is None else steps,
        )
        return [read(picture) for picture in pictures]

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        return self.sampler.draw(prompts, seeds, guidance=self.guidance, steps=self.steps)


def tally(verdicts: Sequence[dict[str, bool]]) -> Counts:
    """Sum up verdicts; parts that a prompt does not state are not counted."""
    counts: Counts = {}
    for verdict in verdicts:
        for name, right in verdict.items():
            before, asked = counts.get(name, (0, 0))
            counts[name] = before + right, asked + 1
    return counts


def evenness(names: Sequence[str | None], num_options: int) -> float:
    """The entropy of the names, divided by the largest possible."""
    _, counts = np.unique([name for name in names if name is not None], return_counts=True)
    if not counts.size:
        return 0.0
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum() / np.log(num_options)) + 0.0


def _colour_hits(readings: Sequence[Reading], colours: Sequence[str]) -> int:
    return sum(
        any(seen.colour == colour for seen in reading.objects)
        for reading, colour in zip(readings, colours, strict=True)
    )


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
    evaluation = Evaluation(sampler, guidance=args.guidance, steps=args.steps)
    settings = {"guidance": args.guidance, "steps": args.steps, "size": args.size}
    report = Report(args.json, f"images {args.size}", settings)
    parts: dict[str, Callable[[], Any]] = {
        "autoencoder": lambda: evaluation.autoencoder(args.num),
        **{name: partial(evaluation.suite, name, args.num) for name in SUITES},
        "circles": lambda: evaluation.circles(args.num),
        "phrases": lambda: evaluation.phrases(args.num),
        "negative": lambda: evaluation.negative(args.num),
        "diversity": lambda: evaluation.diversity(min(max(args.num, 2), 256)),
    }
    assert tuple(parts) == PARTS
    for name in args.parts:
        report.add(name, parts[name]())
    if args.curve_num:
        report.add(
            "guidance_curve",
            {f"{g:g}": evaluation.curve_point(args.curve_num, guidance=g) for g in GUIDANCE_CURVE},
        )
        report.add(
            "steps_curve",
            {f"{s}": evaluation.curve_point(args.curve_num, steps=s) for s in STEPS_CURVE},
        )
    print(f"{time.monotonic() - started_s:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="diffusers folder")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--num", type=int, default=500, help="questions of each suite")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument(
        "--curve-num", type=int, default=0, help="questions for each point of the curves"
    )
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    evaluate(args)


if __name__ == "__main__":
    main()
