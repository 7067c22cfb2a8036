"""Compares the pictures of a setting with those of the defaults, question by question."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evaluation.difference import compare
from evaluation.resampling import Groups
from evaluation.score_rows import share_rows
from tools.demo_image_model.classify import read
from tools.demo_image_model.questions import Question, double, judge, single

SCORES = ("all", "colours", "shapes", "place")
"""The first decides; the others say where a difference comes from."""
VISIBLE = 8
"""A channel that differs by more than so many of 255 levels is visible beside the other picture."""

Verdicts = Sequence[Mapping[str, bool]]


def draw_questions(num: int) -> list[Question]:
    """Two in three are about two objects: nearly all pictures of one are right, and show little."""
    return [single(i) if i % 3 == 0 else double(i) for i in range(num)]


def verdicts(questions: Sequence[Question], pictures: np.ndarray) -> Verdicts:
    """What is right in each picture; `place` is a place or the relation of two objects."""
    found = []
    for question, picture in zip(questions, pictures, strict=True):
        verdict = judge(question, read(picture))
        if "relation" in verdict:
            verdict["place"] = verdict["relation"]
        found.append({name: verdict[name] for name in SCORES if name in verdict})
    return found


def differences(first: Verdicts, second: Verdicts) -> dict[str, Any]:
    """Each score's paired difference over the questions that have it."""
    found = {}
    for name in SCORES:
        pairs = [(a[name], b[name]) for a, b in zip(first, second, strict=True) if name in a]
        ours, theirs = (share_rows(side) for side in zip(*pairs, strict=True))
        found[name] = asdict(compare(ours, theirs, Groups([None] * len(pairs)), seed=0))
        found[name]["asked"] = len(pairs)
    return found


def changed_share(first: np.ndarray, second: np.ndarray) -> float:
    """The mean share of a picture's pixels that visibly differ."""
    apart = np.abs(first.astype(np.int16) - second).max(axis=-1)
    return float((apart > VISIBLE).mean())
