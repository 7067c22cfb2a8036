"""Editing pairs: a scene, an instruction, and the scene that follows from it, drawn by index.

An instruction names its object so that only one fits, no scene holds a held-out pair, and every
word is one that the tokenizer knows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tools.demo_image_model.captions import SIZE_WORDS, with_article
from tools.demo_image_model.palette import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
)
from tools.demo_image_model.scenes import (
    MARGIN,
    Item,
    Scene,
    draw_pair,
    draw_scene,
    pick,
    relation_of,
    scene_rng,
    single_scene,
)

GAP = 0.01
"""Least free space between two objects after an edit, in image widths."""
EMPTY_SHARE = 0.2
"""Of the scenes that something is added to, those that hold nothing before."""

MOVES: dict[str, tuple[float | None, float | None]] = {
    "to the left": (0.25, None),
    "to the right": (0.75, None),
    "to the top": (None, 0.25),
    "to the bottom": (None, 0.75),
    "to the center": (0.5, 0.5),
    "to the top left corner": (0.25, 0.25),
    "to the top right corner": (0.75, 0.25),
    "to the bottom left corner": (0.25, 0.75),
    "to the bottom right corner": (0.75, 0.75),
}
"""Where an object's centre goes; None: that coordinate stays."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One pair.

    `changed` is the index of the target's item that is new or other than before, None when there
    is no such item. Of an added item only what the instruction says is certain: its pair, its
    size if `size_said`, and the target's `place` or `relation` if set.
    """

    kind: str
    source: Scene
    target: Scene
    instruction: str
    changed: int | None = None
    size_said: bool = True


def draw_edit(seed: int, index: int) -> Edit:
    """Pair `index` of a stream; always the same one."""
    rng = scene_rng(seed, index)
    kind = pick(rng, KINDS)
    while True:
        edit = KINDS[kind](rng)
        if edit is not None:
            return edit


def _recolour(rng: np.random.Generator) -> Edit | None:
    scene, index = _scene_and_index(rng)
    colour = pick(rng, COLOURS)
    if colour == scene.items[index].colour:
        return None
    name = _name(scene, index, rng)
    wording = pick(rng, ("make {} {}", "make {} {}", "turn {} {}", "change the color of {} to {}"))
    return _changed("recolour", scene, index, wording.format(name, colour), colour=colour)


def _reshape(rng: np.random.Generator) -> Edit | None:
    scene, index = _scene_and_index(rng)
    shape = pick(rng, SHAPES)
    if shape == scene.items[index].shape:
        return None
    name = _name(scene, index, rng)
    wording = pick(rng, ("turn {} into {}", "turn {} into {}", "change {} into {}", "make {} {}"))
    instruction = wording.format(name, with_article(shape))
    return _changed("reshape", scene, index, instruction, shape=shape)


def _replace(rng: np.random.Generator) -> Edit | None:
    scene, index = _scene_and_index(rng)
    colour, shape = draw_pair(rng)
    if colour == scene.items[index].colour or shape == scene.items[index].shape:
        return None
    instruction = f"replace {_name(scene, index, rng)} with {with_article(f'{colour} {shape}')}"
    return _changed("replace", scene, index, instruction, colour=colour, shape=shape)


def _resize(rng: np.random.Generator) -> Edit | None:
    scene, index = _scene_and_index(rng)
    item = scene.items[index]
    size = "small" if item.size == "large" else "large"
    radius = float(rng.uniform(*SIZES[size]))
    instruction = f"make {_name(scene, index, rng)} {pick(rng, SIZE_WORDS[size])}"
    low, high = radius + MARGIN, 1 - radius - MARGIN
    x, y = float(np.clip(item.x, low, high)), float(np.clip(item.y, low, high))
    return _changed("resize", scene, index, instruction, size=size, radius=radius, x=x, y=y)


def _move(rng: np.random.Generator) -> Edit | None:
    scene, index = _scene_and_index(rng)
    item = scene.items[index]
    way = pick(rng, MOVES)
    low, high = item.radius + MARGIN, 1 - item.radius - MARGIN
    x, y = (
        old if new is None else float(np.clip(new, low, high))
        for old, new in zip((item.x, item.y), MOVES[way], strict=True)
    )
    if np.hypot(x - item.x, y - item.y) < 0.18:
        return None
    instruction = f"move {_name(scene, index, rng)} {way}"
    return _changed("move", scene, index, instruction, x=x, y=y)


def _remove(rng: np.random.Generator) -> Edit | None:
    scene, index = _scene_and_index(rng)
    left = tuple(item for i, item in enumerate(scene.items) if i != index)
    wording = pick(rng, ("remove {}", "remove {}", "delete {}"))
    instruction = wording.format(_name(scene, index, rng))
    return Edit("remove", scene, Scene(scene.background, left), instruction)


def _add(rng: np.random.Generator) -> Edit | None:
    if rng.random() < EMPTY_SHARE:
        target, index = single_scene(rng, pick(rng, BACKGROUNDS), *draw_pair(rng)), 0
    else:
        target = draw_scene(rng)
        index = int(rng.integers(2))
    if index >= len(target.items) or not _apart(target):
        return None
    item, others = target.items[index], target.items[:index] + target.items[index + 1 :]
    size_said = bool(rng.random() < 0.4)
    words = f"{item.colour} {item.shape}"
    phrase = f"{pick(rng, SIZE_WORDS[item.size])} {words}" if size_said else words
    text = f"add {with_article(phrase)}"
    place = relation = None
    luck = rng.random()
    if others and luck < 0.35:
        relation = relation_of(item, others[0])
        text += f" {pick(rng, RELATIONS[relation])} {_name(Scene('', others), 0, rng, it=False)}"
    elif luck < 0.65:
        place = _place(item)
        if place is None:
            return None
        text += f" {place}"
    source = Scene(target.background, others)
    # The relation is that of the first to the second, so the added item goes first.
    after = Scene(target.background, (item, *others), place, relation)
    return Edit("add", source, after, text, 0, size_said)


def _background(rng: np.random.Generator) -> Edit | None:
    scene = draw_scene(rng)
    background = pick(rng, BACKGROUNDS)
    if background == scene.background:
        return None
    wording = pick(
        rng,
        (
            "make the background {}",
            "turn the background {}",
            "change the background to {}",
            "change the color of the background to {}",
        ),
    )
    target = replace(scene, background=background, place=None, relation=None)
    return Edit("background", scene, target, wording.format(background))


KINDS: dict[str, Callable[[np.random.Generator], Edit | None]] = {
    "recolour": _recolour,
    "reshape": _reshape,
    "replace": _replace,
    "resize": _resize,
    "move": _move,
    "remove": _remove,
    "add": _add,
    "background": _background,
}
"""All equally likely. Each draws one edit, or None when the draw allows none."""


def _scene_and_index(rng: np.random.Generator) -> tuple[Scene, int]:
    scene = draw_scene(rng)
    return scene, int(rng.integers(len(scene.items)))


def _changed(
    kind: str, scene: Scene, index: int, instruction: str, **changes: str | float
) -> Edit | None:
    items = list(scene.items)
    items[index] = replace(items[index], **changes)  # type: ignore[arg-type]
    target = Scene(scene.background, tuple(items))
    pairs = [(item.colour, item.shape) for item in items]
    # Two objects that look alike could not be told apart by a later instruction or by the judge.
    if pairs[index] in HELD_OUT or len(set(pairs)) < len(pairs) or not _apart(target):
        return None
    return Edit(kind, scene, target, instruction, index)


def _apart(scene: Scene) -> bool:
    if len(scene.items) < 2:
        return True
    first, second = scene.items
    distance = np.hypot(first.x - second.x, first.y - second.y)
    return bool(distance >= first.radius + second.radius + GAP)


def _name(scene: Scene, index: int, rng: np.random.Generator, *, it: bool = True) -> str:
    """`the circle`, `the red circle`, `the red one` or `it`: whatever fits one object only."""
    item = scene.items[index]
    others = [other for i, other in enumerate(scene.items) if i != index]
    options = [f"the {item.colour} {item.shape}"]
    if all(other.shape != item.shape for other in others):
        options += [f"the {item.shape}"] * 2
    if all(other.colour != item.colour for other in others):
        options += [f"the {item.colour} one", f"the {item.colour} object"]
    if not others:
        options += ["it"] if it else []
        options += ["the object"]
    return pick(rng, options)


def _place(item: Item) -> str | None:
    near = [name for name, (x, y) in PLACES.items() if np.hypot(item.x - x, item.y - y) <= 0.1]
    return near[0] if near else None
