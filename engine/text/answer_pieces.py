"""The pieces of an answer, in the order in which a model writes them."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Content:
    """Text for the reader."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text that the model wrote to itself before it answered."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The beginning of a function call; calls are numbered from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Piece = Content | Reasoning | CallStart | Arguments


def joined(pieces: Iterable[Piece]) -> list[Piece]:
    """Merge neighbouring pieces of one kind and drop empty ones."""
    result: list[Piece] = []
    for piece in pieces:
        last = result[-1] if result else None
        match piece, last:
            case (Content(text), Content(before)):
                result[-1] = Content(before + text)
            case (Reasoning(text), Reasoning(before)):
                result[-1] = Reasoning(before + text)
            case (Arguments(index, text), Arguments(same, before)) if index == same:
                result[-1] = Arguments(index, before + text)
            case (CallStart(), _):
                result.append(piece)
            case _ if piece.text:
                result.append(piece)
    return result
