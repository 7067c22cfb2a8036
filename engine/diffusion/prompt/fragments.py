"""What a prompt is made of once its syntax is read."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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


def merge_equal(fragments: Sequence[Piece]) -> list[Piece]:
    """Join neighbours of equal weight; drop empty fragments."""
    merged: list[Piece] = []
    for piece in fragments:
        if isinstance(piece, Fragment) and not piece.text:
            continue
        last = merged[-1] if merged else None
        if (
            isinstance(piece, Fragment)
            and isinstance(last, Fragment)
            and last.weight == piece.weight
        ):
            merged[-1] = Fragment(last.text + piece.text, last.weight)
        else:
            merged.append(piece)
    return merged


def join_words(before: str, after: str) -> str:
    """Two texts that are tokenized apart, as one: with a space where they would become one word."""
    return f"{before} {after}" if before[-1:].isalnum() and after[:1].isalnum() else before + after


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
