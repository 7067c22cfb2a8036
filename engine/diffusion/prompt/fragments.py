"""What a prompt is made of once its syntax is read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from engine.errors import InvalidParameter

MAX_NESTING = 64
"""Brackets open at once. Weights beyond it make no picture, and reading stays linear."""

MAX_WEIGHT = 100.0
"""States times more than this leave the range of fp16."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of text of one weight. Fragments are tokenized one by one."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Break:
    """Ends a chunk: what follows is encoded on its own and stands behind it."""


@dataclass(frozen=True, slots=True)
class Blend:
    """Prompts that are encoded one by one and summed. A prompt that has one is nothing else."""

    parts: tuple[tuple[Fragment, ...], ...]
    weights: tuple[float, ...]
    """As they are multiplied: already normalised, if they are to be."""


Piece = Fragment | Break | Blend


def merge_equal(pieces: Iterable[Fragment | Break]) -> list[Fragment | Break]:
    """Join neighbours of equal weight; drop empty fragments."""
    kept = [piece for piece in pieces if isinstance(piece, Break) or piece.text]
    merged: list[Fragment | Break] = []
    for weight, run in groupby(kept, lambda p: p.weight if isinstance(p, Fragment) else None):
        if weight is None:
            merged += run
        else:
            merged.append(Fragment("".join(p.text for p in run if isinstance(p, Fragment)), weight))
    return merged


def join_words(texts: Iterable[str]) -> str:
    """Texts that are tokenized apart, as one: with a space where they would become one word."""
    parts = [""]
    for text in texts:
        if parts[-1][-1:].isalnum() and text[:1].isalnum():
            parts.append(" ")
        if text:
            parts.append(text)
    return "".join(parts)


def check_weight(weight: float) -> float:
    """The weight itself.

    Raises:
        InvalidParameter: it is not finite or beyond `MAX_WEIGHT`.
    """
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise InvalidParameter(
            f"a prompt weight is {weight:g}; weights lie within ±{MAX_WEIGHT:g}: "
            "lower it or nest fewer brackets",
            param="prompt",
        )
    return weight


def check_nesting(depth: int) -> None:
    """Raises InvalidParameter where more than `MAX_NESTING` brackets are open."""
    if depth > MAX_NESTING:
        raise InvalidParameter(
            f"the prompt has more than {MAX_NESTING} brackets open at once; close some, escape "
            "them with a backslash, or use prompt_syntax plain",
            param="prompt",
        )
