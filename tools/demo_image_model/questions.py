"""The questions of the evaluation, and the judgement of pictures.

A question is a prompt and a seed, drawn by index from streams that no training run uses. It also
holds what the prompt says, and only that is judged.
"""

import re
from dataclasses import dataclass

import numpy as np

from tools.demo_image_model.captions import OPENINGS, SIZE_WORDS, with_article
from tools.demo_image_model.classify import Reading, Seen
from tools.demo_image_model.palette import (
    BACKGROUNDS,
    HELD_OUT,
    PLACE_PHRASES,
    PLACES,
    RELATIONS,
    SIZES,
)
from tools.demo_image_model.scenes import draw_pair, pick, relation_of, scene_rng

SEED = 900_001
"""Seed of the evaluation's streams; training uses small seeds."""

SIZE_SHARE, PLACE_SHARE, BACKGROUND_SHARE, OPENING_SHARE = 0.4, 0.5, 0.4, 0.15
RELATION_SHARE = 0.75
ROUND = 0.05
"""Greatest unevenness that looks round to a person: at a radius of 28 pixels, 1.4 pixels more in
one direction than in another. An ellipse with axes 19:20 has this much; rendered circles 0.01."""


@dataclass(frozen=True, slots=True)
class Ask:
    """An object of a prompt; `size` is None if the prompt does not state it."""

    colour: str
    shape: str
    size: str | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the seed to draw it with, and what it states; None means not stated."""

    prompt: str
    seed: int
    asks: tuple[Ask, ...]
    background: str | None = None
    place: str | None = None
    relation: str | None = None


def single(index: int) -> Question:
    """A question for one object with a pair of colour and shape from the training."""
    rng = scene_rng(SEED, index)
    return _phrase(rng, [draw_pair(rng)])


def double(index: int) -> Question:
    """A question for two objects with pairs from the training."""
    rng = scene_rng(SEED + 1, index)
    first = second = draw_pair(rng)
    while second == first:
        second = draw_pair(rng)
    return _phrase(rng, [first, second])


def held_out(index: int) -> Question:
    """A question for one object with a pair that training has never shown."""
    rng = scene_rng(SEED + 2, index)
    pairs = sorted(HELD_OUT)
    return _phrase(rng, [pairs[rng.integers(len(pairs))]])


def circle(index: int) -> Question:
    """A question for one circle with a pair from the training."""
    rng = scene_rng(SEED + 6, index)
    while True:
        colour, shape = draw_pair(rng)
        if shape == "circle":
            return _phrase(rng, [(colour, shape)])


def placed(index: int) -> tuple[Question, str]:
    """A question for one object at a place, and the phrase for the place; phrases take turns."""
    rng = scene_rng(SEED + 7, index)
    phrases = [(phrase, place) for place, ways in PLACE_PHRASES.items() for phrase in ways]
    phrase, place = phrases[index % len(phrases)]
    colour, shape = draw_pair(rng)
    prompt = f"{with_article(f'{colour} {shape}')} {phrase}"
    return Question(prompt, _seed(rng), (Ask(colour, shape),), place=place), phrase


def kind_of_phrase(phrase: str) -> str:
    """A phrase without its directions, such as `at the [top] [right]`."""
    kind = re.sub(r"top|bottom", "[top]", phrase)
    return re.sub(r"left|right", "[left]", re.sub(r"upper|lower", "[upper]", kind))


SUITES = {
    "single": single,
    "double": double,
    "held_out": held_out,
}


def judge(question: Question, reading: Reading) -> dict[str, bool]:
    """Judge the parts of a prompt; parts that it does not state are left out.

    `objects`: exactly the objects asked for, each with its own colour and shape. `place`, `size`
    and `relation` can only be right together with it. `all`: everything that was said.
    """
    asks, seen = question.asks, reading.objects
    verdict = {
        "count": len(asks) == len(seen),
        "colours": _same([a.colour for a in asks], [s.colour for s in seen]),
        "shapes": _same([a.shape for a in asks], [s.shape for s in seen]),
    }
    matched = match(asks, seen)
    verdict["objects"] = matched is not None
    if any(ask.size for ask in asks):
        verdict["size"] = matched is not None and all(
            ask.size in (None, found.size) for ask, found in zip(asks, matched, strict=True)
        )
    if question.place:
        verdict["place"] = matched is not None and matched[0].place == question.place
    if question.relation:
        verdict["relation"] = matched is not None and relation_of(*matched) == question.relation
    if question.background:
        verdict["background"] = reading.background == question.background
    verdict["all"] = all(verdict.values())
    return verdict


def match(asks: tuple[Ask, ...], seen: tuple[Seen, ...]) -> list[Seen] | None:
    """The objects in the order of `asks`, or None unless exactly these are there."""
    by_pair = {(found.colour, found.shape): found for found in seen}
    matched = [by_pair.get((ask.colour, ask.shape)) for ask in asks]
    if len(seen) != len(asks) or len(by_pair) != len(asks):
        return None
    found = [one for one in matched if one is not None]
    return found if len(found) == len(asks) else None


def _same(wanted: list[str], found: list[str | None]) -> bool:
    return sorted(wanted) == sorted(str(name) for name in found)


def _phrase(rng: np.random.Generator, pairs: list[tuple[str, str]]) -> Question:
    asks, phrases = [], []
    for colour, shape in pairs:
        size = pick(rng, SIZES) if rng.random() < SIZE_SHARE else None
        asks.append(Ask(colour, shape, size))
        words = f"{colour} {shape}"
        phrases.append(with_article(f"{pick(rng, SIZE_WORDS[size])} {words}" if size else words))
    place = side = background = None
    text = phrases[0]
    if len(pairs) == 1 and rng.random() < PLACE_SHARE:
        place = pick(rng, PLACES)
        text = f"{text} {place}"
    elif len(pairs) == 2 and rng.random() < RELATION_SHARE:
        side = pick(rng, RELATIONS)
        text = f"{text} {pick(rng, RELATIONS[side])} {phrases[1]}"
    elif len(pairs) == 2:
        text = f"{text} and {phrases[1]}"
    if rng.random() < BACKGROUND_SHARE:
        background = pick(rng, BACKGROUNDS)
        text = f"{text} on a {background} background"
    if rng.random() < OPENING_SHARE:
        text = f"{pick(rng, OPENINGS)} {text}"
    return Question(text, _seed(rng), tuple(asks), background, place, side)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
