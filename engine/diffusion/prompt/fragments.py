"""The parts of a prompt once its syntax is read."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from engine.errors import InvalidParameter

MAX_NESTING = 64
"""The most open brackets. More are of no use, and with a limit reading takes linear time."""

MAX_WEIGHT = 100.0
"""The largest weight; states multiplied by more leave the range of fp16."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """A stretch of text with one weight. Fragments are tokenized one by one."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Break:
    """The end of a chunk: the text after it is encoded separately, and its states follow."""


@dataclass(frozen=True, slots=True)
class Blend:
    """Prompts that are encoded one by one and summed. It is always a whole prompt."""

    parts: tuple[tuple[Fragment, ...], ...]
    weights: tuple[float, ...]
    """The factors of the sum, already normalised if they should be."""


Piece = Fragment | Break | Blend


def merge_equal(pieces: Iterable[Fragment | Break]) -> list[Fragment | Break]:
    """Join neighbours of equal weight and drop empty fragments."""
    kept = [piece for piece in pieces if isinstance(piece, Break) or piece.text]
    merged: list[Fragment | Break] = []
    for weight, run in groupby(kept, lambda p: p.weight if isinstance(p, Fragment) else None):
        if weight is None:
            merged += run
        else:
            merged.append(Fragment("".join(p.text for p in run if isinstance(p, Fragment)), weight))
    return merged


def join_words(texts: Iterable[str]) -> str:
    """Join texts that are tokenized separately, with spaces where they would become one word."""
    parts = [""]
    for text in texts:
        if parts[-1][-1:].isalnum() and text[:1].isalnum():
            parts.append(" ")
        if text:
            parts.append(text)
    return "".join(parts)


def check_weight(weight: float) -> float:
    """Check a weight and return it.

    Raises:
        InvalidParameter: the weight is not finite, or beyond `MAX_WEIGHT`.
    """
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise InvalidParameter(
            f"a prompt weight is {weight:g}; it must be within ±{MAX_WEIGHT:g}: "
            "lower it or nest fewer brackets",
            param="prompt",
        )
    return weight


def check_nesting(depth: int) -> None:
    """Raises InvalidParameter if more than `MAX_NESTING` brackets are open."""
    if depth > MAX_NESTING:
        raise InvalidParameter(
            f"the prompt has more than {MAX_NESTING} brackets open at once; close some, escape "
            "them with a backslash, or use prompt_syntax plain",
            param="prompt",
        )
