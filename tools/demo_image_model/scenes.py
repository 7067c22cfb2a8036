"""Scenes: one or two coloured shapes on a plain background, drawn at random by index.

The same (seed, index) is always the same scene. A scene never holds a held-out pair of colour and
shape, unless the pair is asked for.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from tools.demo_image_model.palette import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
)

SINGLE_SHARE = 0.45
CENTER = "in the center"
CENTER_SHARE = 0.25
"""The share of single objects put in the centre on purpose; the others lie anywhere."""
MARGIN = 0.02
"""Free space between an object and the border, in image widths."""
GRID = 8
"""Cells across the latents of 64 pixels; `snapped` objects lie on their corners."""


@dataclass(frozen=True, slots=True)
class Item:
    """An object of a scene. `x`, `y` (down) and `radius` are in image widths."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's contents. `place` is set for one object, `relation` (first to second) for two."""

    background: str
    items: tuple[Item, ...]
    place: str | None = None
    relation: str | None = None


def scene_rng(seed: int, index: int) -> np.random.Generator:
    """The stream that everything about scene `index` is drawn from."""
    return np.random.default_rng([seed, index])


def draw_scene(rng: np.random.Generator, *, single_share: float = SINGLE_SHARE) -> Scene:
    """A scene of one object in `single_share` of the draws, else of two."""
    background = pick(rng, BACKGROUNDS)
    if rng.random() < single_share:
        return single_scene(rng, background, *draw_pair(rng))
    first = draw_pair(rng)
    second = draw_pair(rng)
    while second == first:
        second = draw_pair(rng)
    return double_scene(rng, background, first, second, pick(rng, RELATIONS))


def draw_pair(rng: np.random.Generator) -> tuple[str, str]:
    """A (colour, shape) pair that is not held out."""
    while True:
        pair = pick(rng, COLOURS), pick(rng, SHAPES)
        if pair not in HELD_OUT:
            return pair


def single_scene(rng: np.random.Generator, background: str, colour: str, shape: str) -> Scene:
    """A scene of one object with this colour and shape at a random place."""
    place = CENTER if rng.random() < CENTER_SHARE else pick(rng, PLACES)
    x, y = (c + rng.uniform(-0.04, 0.04) for c in PLACES[place])
    return Scene(background, (_item(rng, colour, shape, x, y),), place=place)


def double_scene(
    rng: np.random.Generator,
    background: str,
    first: tuple[str, str],
    second: tuple[str, str],
    relation: str,
) -> Scene:
    """A scene of two (colour, shape) objects, the first lying `relation` of the second."""
    # Far enough apart that two large objects do not touch.
    near, far = 0.255 + rng.uniform(-0.02, 0.02), 0.745 + rng.uniform(-0.02, 0.02)
    side_first, side_second = 0.5 + rng.uniform(-0.14, 0.14, size=2)
    along_first, along_second = (near, far) if relation in ("left", "above") else (far, near)
    if relation in ("left", "right"):
        at_first, at_second = (along_first, side_first), (along_second, side_second)
    else:
        at_first, at_second = (side_first, along_first), (side_second, along_second)
    items = _item(rng, *first, *at_first), _item(rng, *second, *at_second)
    return Scene(background, items, relation=relation)


def snapped(scene: Scene, *, grid: int = GRID) -> Scene:
    """The scene with its objects on the corners of a grid and one radius for each size.

    An outline then meets the cells of the latents in few ways. If it could lie anywhere, a model
    this small would draw parts of it for one place or radius and parts for another.
    """
    return replace(scene, items=tuple(_snapped(item, grid) for item in scene.items))


def contrast_scene(rng: np.random.Generator, size: str) -> Scene:
    """A scene of two objects without a common colour or shape; only the first has this size."""
    while True:
        first, second = draw_pair(rng), draw_pair(rng)
        if first[0] == second[0] or first[1] == second[1]:
            continue
        scene = double_scene(rng, pick(rng, BACKGROUNDS), first, second, pick(rng, RELATIONS))
        if scene.items[0].size == size != scene.items[1].size:
            return scene


def pick(rng: np.random.Generator, options: Iterable[str]) -> str:
    """One of the options, all equally likely."""
    names = list(options)
    return names[rng.integers(len(names))]


class Placed(Protocol):
    """Whatever has a centre: `x` to the right and `y` down."""

    @property
    def x(self) -> float: ...

    @property
    def y(self) -> float: ...


def relation_of(first: Placed, second: Placed) -> str:
    """The relation of the first to the second: the direction of the larger distance."""
    across, down = first.x - second.x, first.y - second.y
    if abs(across) >= abs(down):
        return "left" if across < 0 else "right"
    return "above" if down < 0 else "below"


def _snapped(item: Item, grid: int) -> Item:
    x, y = (round(c * grid) / grid for c in (item.x, item.y))
    return replace(item, x=x, y=y, radius=sum(SIZES[item.size]) / 2)


def _item(rng: np.random.Generator, colour: str, shape: str, x: float, y: float) -> Item:
    size = pick(rng, SIZES)
    radius = float(rng.uniform(*SIZES[size]))
    low, high = radius + MARGIN, 1 - radius - MARGIN
    return Item(
        shape, colour, size, float(np.clip(x, low, high)), float(np.clip(y, low, high)), radius
    )
