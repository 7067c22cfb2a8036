"""The words of the built-in model's world: colours, backgrounds, shapes, sizes, places.

Changing a word or a colour value means training again.
"""

import json
from pathlib import Path

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (250, 140, 20),
    "yellow": (250, 220, 40),
    "green": (40, 160, 70),
    "cyan": (60, 210, 220),
    "blue": (40, 80, 220),
    "purple": (130, 50, 170),
    "pink": (250, 130, 190),
}
"""The colours of objects, sRGB."""

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (128, 128, 128),
    "brown": (110, 75, 50),
}

SHAPES = ("circle", "square", "triangle", "star", "cross")

SIZES: dict[str, tuple[float, float]] = {"small": (0.14, 0.155), "large": (0.20, 0.22)}
"""Range of the circumscribed radius, in image widths."""

PLACES: dict[str, tuple[float, float]] = {
    "in the center": (0.5, 0.5),
    "on the left": (0.25, 0.5),
    "on the right": (0.75, 0.5),
    "at the top": (0.5, 0.25),
    "at the bottom": (0.5, 0.75),
    "in the top left corner": (0.25, 0.25),
    "in the top right corner": (0.75, 0.25),
    "in the bottom left corner": (0.25, 0.75),
    "in the bottom right corner": (0.75, 0.75),
}
"""Centre of a single object, x to the right and y down, in image widths."""


def _side(side: str) -> tuple[str, ...]:
    return f"on the {side}", f"on the {side} side", f"at the {side}"


def _end(*words: str) -> tuple[str, ...]:
    return tuple(f"at the {word}" for word in words)


def _corner(end: str, other_end: str, side: str) -> tuple[str, ...]:
    ends = (end, other_end)
    return (
        *(f"in the {e} {side} corner" for e in ends),
        *(f"{preposition} the {e} {side}" for e in ends for preposition in ("at", "in")),
        f"on the {end} {side}",
    )


PLACE_PHRASES: dict[str, tuple[str, ...]] = {
    "in the center": ("in the center", "in the centre", "in the middle", "at the center"),
    "on the left": _side("left"),
    "on the right": _side("right"),
    "at the top": _end("top"),
    "at the bottom": _end("bottom"),
    "in the top left corner": _corner("top", "upper", "left"),
    "in the top right corner": _corner("top", "upper", "right"),
    "in the bottom left corner": _corner("bottom", "lower", "left"),
    "in the bottom right corner": _corner("bottom", "lower", "right"),
}
"""Phrases for each place."""
assert set(PLACE_PHRASES) == set(PLACES)

RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
}
"""Relations of the first object to the second, with phrases for each."""

HELD_OUT: frozenset[tuple[str, str]] = frozenset(
    (colour, shape)
    for colour, shape in json.loads((Path(__file__).parent / "held_out.json").read_text())
)
"""(colour, shape) pairs that no training picture holds; evaluation asks for them."""
