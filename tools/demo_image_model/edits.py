"""Editing pairs: a scene, an instruction, and the resulting scene, drawn by index.

An instruction names its object so that only one fits, no scene holds a held-out pair, and the
tokenizer knows every word. `draw_edit` draws from all scenes, `draw_contrast_edit` from those with
a small and a large object, and `draw_training_edit` from both.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tools.demo_image_model.captions import BACKGROUND_WORDS, SIZE_WORDS, with_article
from tools.demo_image_model.palette import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT,
    PLACE_PHRASES,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
)
from tools.demo_image_model.scenes import (
    MARGIN,
    Item,
    Scene,
    contrast_scene,
    draw_pair,
    draw_scene,
    pick,
    relation_of,
    scene_rng,
    single_scene,
    snapped,
)

GAP = 0.01
"""Least free space between two objects after an edit, in image widths."""
EMPTY_SHARE = 0.2
"""The share of scenes without objects among those that something is added to."""

CONTRAST_SHARE, SMALL_SHARE = 0.5, 0.67
"""The share of training pairs with a small and a large object, and of those that mean the small
one among these."""
SNAPPED_SHARE = 0.5
"""The share of training pairs whose objects lie as in the pictures that the model draws."""

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
"""The new centre of an object; a coordinate that is None stays."""


def move_phrases(way: str) -> list[str]:
    """The ways to say one of `MOVES`."""
    ways = [way, way.removesuffix(" corner")]
    ways += [way.replace("top", "upper").replace("bottom", "lower") for way in ways]
    others = {
        "to the left": ["to the left", "to the left side"],
        "to the right": ["to the right", "to the right side"],
        "to the center": ["to the center", "to the centre", "to the middle"],
    }
    return others.get(way, list(dict.fromkeys(ways)) if way.endswith("corner") else [way])


@dataclass(frozen=True, slots=True)
class Edit:
    """A pair of scenes and the instruction between them.

    `changed` is the index of the target's new or changed item, or None. An added item is judged
    only by what the instruction says: its pair, its size if `size_said`, and the target's `place`
    or `relation` if set.
    """

    kind: str
    source: Scene
    target: Scene
    instruction: str
    changed: int | None = None
    size_said: bool = True


@dataclass(frozen=True, slots=True)
class Subject:
    """Chooses the object of an edit: any one or, with `naming`, the one of this `size` among two.

    `naming` is the property that distinguishes the object from the other, one of `NAMINGS`.
    """

    naming: str | None = None
    size: str = "small"

    def choose(self, rng: np.random.Generator) -> tuple[Scene, int]:
        """A scene and the index of the object in it."""
        if self.naming is not None:
            return contrast_scene(rng, self.size), 0
        scene = draw_scene(rng)
        return scene, int(rng.integers(len(scene.items)))

    def name(self, scene: Scene, index: int, rng: np.random.Generator) -> str:
        """Words that fit this object of the scene only."""
        names = _names if self.naming is None else NAMINGS[self.naming]
        return pick(rng, names(scene, index))


def draw_edit(seed: int, index: int) -> Edit:
    """Pair `index` of a stream; always the same one."""
    rng = scene_rng(seed, index)
    return _draw(pick(rng, KINDS), rng, Subject())


def draw_contrast_edit(seed: int, index: int, naming: str, *, size: str = "small") -> Edit:
    """Pair `index` of a stream where the object of this size lies beside one of the other."""
    rng = scene_rng(seed, index)
    return _draw(pick(rng, CONTRAST_KINDS), rng, Subject(naming, size))


def draw_training_edit(seed: int, index: int) -> Edit:
    """Pair `index` of the training stream: a mixture of both, and `HARD_KINDS` twice as often.

    Without many contrast scenes the model learns to change large objects: only one in eleven of the
    plain stream's pairs asks for a small object that lies beside a large one.
    """
    rng = scene_rng(seed, index)
    edit = _draw_training(rng)
    return _snapped(edit) if rng.random() < SNAPPED_SHARE else edit


def _draw_training(rng: np.random.Generator) -> Edit:
    if rng.random() >= CONTRAST_SHARE:
        return _draw(pick(rng, [*KINDS, *HARD_KINDS]), rng, Subject())
    size = "small" if rng.random() < SMALL_SHARE else "large"
    subject = Subject(pick(rng, NAMINGS), size)
    hard = [kind for kind in HARD_KINDS if kind in CONTRAST_KINDS]
    return _draw(pick(rng, [*CONTRAST_KINDS, *hard]), rng, subject)


def _draw(kind: str, rng: np.random.Generator, subject: Subject) -> Edit:
    while True:
        edit = KINDS[kind](rng, subject)
        if edit is not None:
            return edit


def _snapped(edit: Edit) -> Edit:
    """The edit between snapped scenes, or unchanged if objects would touch or nothing change."""
    snap = replace(edit, source=snapped(edit.source), target=snapped(edit.target))
    return snap if _apart(snap.target) and snap.source != snap.target else edit


def _recolour(rng: np.random.Generator, subject: Subject) -> Edit | None:
    scene, index = subject.choose(rng)
    colour = pick(rng, COLOURS)
    if colour == scene.items[index].colour:
        return None
    name = subject.name(scene, index, rng)
    wording = pick(rng, ("make {} {}", "make {} {}", "turn {} {}", "change the color of {} to {}"))
    return _changed("recolour", scene, index, wording.format(name, colour), colour=colour)


def _reshape(rng: np.random.Generator, subject: Subject) -> Edit | None:
    scene, index = subject.choose(rng)
    shape = pick(rng, SHAPES)
    if shape == scene.items[index].shape:
        return None
    name = subject.name(scene, index, rng)
    wording = pick(rng, ("turn {} into {}", "turn {} into {}", "change {} into {}", "make {} {}"))
    instruction = wording.format(name, with_article(shape))
    return _changed("reshape", scene, index, instruction, shape=shape)


def _replace(rng: np.random.Generator, subject: Subject) -> Edit | None:
    scene, index = subject.choose(rng)
    colour, shape = draw_pair(rng)
    if colour == scene.items[index].colour or shape == scene.items[index].shape:
        return None
    instruction = (
        f"replace {subject.name(scene, index, rng)} with {with_article(f'{colour} {shape}')}"
    )
    return _changed("replace", scene, index, instruction, colour=colour, shape=shape)


def _resize(rng: np.random.Generator, subject: Subject) -> Edit | None:
    scene, index = subject.choose(rng)
    item = scene.items[index]
    size = "small" if item.size == "large" else "large"
    radius = float(rng.uniform(*SIZES[size]))
    instruction = f"make {subject.name(scene, index, rng)} {pick(rng, SIZE_WORDS[size])}"
    low, high = radius + MARGIN, 1 - radius - MARGIN
    x, y = float(np.clip(item.x, low, high)), float(np.clip(item.y, low, high))
    return _changed("resize", scene, index, instruction, size=size, radius=radius, x=x, y=y)


def _move(rng: np.random.Generator, subject: Subject) -> Edit | None:
    scene, index = subject.choose(rng)
    item = scene.items[index]
    way = pick(rng, MOVES)
    low, high = item.radius + MARGIN, 1 - item.radius - MARGIN
    x, y = (
        old if new is None else float(np.clip(new, low, high))
        for old, new in zip((item.x, item.y), MOVES[way], strict=True)
    )
    if np.hypot(x - item.x, y - item.y) < 0.18:
        return None
    instruction = f"move {subject.name(scene, index, rng)} {pick(rng, move_phrases(way))}"
    return _changed("move", scene, index, instruction, x=x, y=y)


def _remove(rng: np.random.Generator, subject: Subject) -> Edit | None:
    scene, index = subject.choose(rng)
    left = tuple(item for i, item in enumerate(scene.items) if i != index)
    wording = pick(rng, ("remove {}", "remove {}", "delete {}"))
    instruction = wording.format(subject.name(scene, index, rng))
    return Edit("remove", scene, Scene(scene.background, left), instruction)


def _add(rng: np.random.Generator, _: Subject) -> Edit | None:
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
        names = [name for name in _names(Scene("", others), 0) if name != "it"]
        text += f" {pick(rng, RELATIONS[relation])} {pick(rng, names)}"
    elif luck < 0.65:
        place = _place(item)
        if place is None:
            return None
        text += f" {pick(rng, PLACE_PHRASES[place])}"
    source = Scene(target.background, others)
    # The relation is the first item's to the second, so the added item goes first.
    after = Scene(target.background, (item, *others), place, relation)
    return Edit("add", source, after, text, 0, size_said)


def _background(rng: np.random.Generator, _: Subject) -> Edit | None:
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
    instruction = wording.format(pick(rng, BACKGROUND_WORDS[background]))
    return Edit("background", scene, target, instruction)


KINDS: dict[str, Callable[[np.random.Generator, Subject], Edit | None]] = {
    "recolour": _recolour,
    "reshape": _reshape,
    "replace": _replace,
    "resize": _resize,
    "move": _move,
    "remove": _remove,
    "add": _add,
    "background": _background,
}
"""The kinds of edits, equally likely. Each draws an edit, or None if the draw allows none."""
CONTRAST_KINDS = ("recolour", "reshape", "replace", "resize", "move", "remove")
"""Kinds that name an object of the scene."""
HARD_KINDS = ("move", "recolour", "reshape", "background")
"""Kinds that are learned last: they keep most of the picture and change the rest exactly."""


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


def _names(scene: Scene, index: int) -> list[str]:
    """Names that fit only this object: `the circle`, `the red circle`, `the red one`, `it`."""
    item = scene.items[index]
    others = [other for i, other in enumerate(scene.items) if i != index]
    options = [f"the {item.colour} {item.shape}"]
    if all(other.shape != item.shape for other in others):
        options += [f"the {item.shape}"] * 2
    if all(other.colour != item.colour for other in others):
        options += [f"the {item.colour} one", f"the {item.colour} object"]
    return options if others else [*options, "it", "the object"]


def _by_colour(scene: Scene, index: int) -> list[str]:
    colour = scene.items[index].colour
    return [f"the {colour} one", f"the {colour} object"]


def _by_shape(scene: Scene, index: int) -> list[str]:
    return [f"the {scene.items[index].shape}"]


def _by_place(scene: Scene, index: int) -> list[str]:
    where = PLACE_WORDS[relation_of(scene.items[index], scene.items[1 - index])]
    return [f"the {noun} {where}" for noun in ("one", "object", scene.items[index].shape)]


def _by_size(scene: Scene, index: int) -> list[str]:
    item = scene.items[index]
    return [f"the {word} {noun}" for word in SIZE_WORDS[item.size] for noun in ("one", item.shape)]


NAMINGS: dict[str, Callable[[Scene, int], list[str]]] = {
    "colour": _by_colour,
    "shape": _by_shape,
    "place": _by_place,
    "size": _by_size,
}
"""Names for one of two objects that share no colour and no shape."""
PLACE_WORDS = {
    "left": "on the left",
    "right": "on the right",
    "above": "at the top",
    "below": "at the bottom",
}


def _place(item: Item) -> str | None:
    near = [name for name, (x, y) in PLACES.items() if np.hypot(item.x - x, item.y - y) <= 0.1]
    return near[0] if near else None
