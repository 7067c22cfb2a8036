"""Captions for scenes. They leave things out, so that the model learns each word alone, too.

Every word that a caption or an instruction can hold is in `vocabulary()`.
"""

import numpy as np

from tools.demo_image_model.palette import (
    BACKGROUNDS,
    COLOURS,
    PLACE_PHRASES,
    RELATIONS,
    SHAPES,
    SIZES,
)
from tools.demo_image_model.scenes import CENTER, Item, Scene, pick

EMPTY_SHARE = 0.10
KEYWORD_SHARE = 0.12
SIZE_SHARE, COLOUR_SHARE = 0.4, 0.92
"""The shares of objects whose size and whose colour a caption states."""
PLACE_SHARE, CENTER_SAID_SHARE = 0.97, 0.2
"""The shares of single objects whose place a caption states: elsewhere, and in the centre.

The centre is stated less often, so an object asked for without a place mostly lies there. If all
places were equally likely, guidance would make too many samples draw the object in two of them.
"""
BARE_SHARE = 0.1
"""The share of places and backgrounds that follow a comma without their small words."""
OPENINGS = ("a picture of", "an image of", "a drawing of", "a photo of", "draw")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
BACKGROUND_WORDS = {name: (name,) for name in BACKGROUNDS} | {"gray": ("gray", "grey")}
SIDE_BY_SIDE = ("and", "and", "next to", "beside")
"""Words between two objects whose relation is not stated."""
OWN_PLACES = {
    "left": ("on the left", "on the right"),
    "right": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
"""The places of the first and the second of two objects, by their relation."""
EXTRA_WORDS = (
    "make the turn into add remove delete change replace with move to background color colour "
    "shape it one object and then on in at of . ,"
)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that is true of the scene; may be empty, for classifier-free guidance."""
    luck = rng.random()
    if luck < EMPTY_SHARE:
        return ""
    # A caption of two objects names both: a prompt "red circle" asks for no second object.
    if luck < EMPTY_SHARE + KEYWORD_SHARE and len(scene.items) == 1:
        return _keywords(scene, rng)
    text = _body(scene, rng)
    if rng.random() < 0.4:
        text += _background(scene, rng)
    if rng.random() < 0.15:
        text = f"{pick(rng, OPENINGS)} {text}"
    return text


def noun_phrase(item: Item, rng: np.random.Generator) -> str:
    """The object without its article: `large red circle`, or less."""
    words = [item.shape]
    if rng.random() < COLOUR_SHARE:
        words.insert(0, item.colour)
    if rng.random() < SIZE_SHARE:
        words.insert(0, pick(rng, SIZE_WORDS[item.size]))
    return " ".join(words)


def with_article(phrase: str) -> str:
    """`an orange star`, `a red circle`."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def vocabulary() -> list[str]:
    """All words, sorted."""
    texts = [*COLOURS, *SHAPES, *SIZES, *OPENINGS, *SIDE_BY_SIDE, EXTRA_WORDS, "a an"]
    for phrases in (RELATIONS, PLACE_PHRASES, SIZE_WORDS, BACKGROUND_WORDS):
        texts += [phrase for ways in phrases.values() for phrase in ways]
    return sorted({word for text in texts for word in text.split()})


def _body(scene: Scene, rng: np.random.Generator) -> str:
    phrases = [with_article(noun_phrase(item, rng)) for item in scene.items]
    if len(phrases) == 1:
        share = CENTER_SAID_SHARE if scene.place == CENTER else PLACE_SHARE
        return f"{phrases[0]}{_place(scene, rng)}" if rng.random() < share else phrases[0]
    assert scene.relation is not None
    luck = rng.random()
    if luck < 0.25:
        order = rng.permutation(2)
        return f"{phrases[order[0]]} {pick(rng, SIDE_BY_SIDE)} {phrases[order[1]]}"
    if luck < 0.33:
        here, there = OWN_PLACES[scene.relation]
        return f"{phrases[0]} {here} and {phrases[1]} {there}"
    if rng.random() < 0.5:
        return f"{phrases[0]} {pick(rng, RELATIONS[scene.relation])} {phrases[1]}"
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    return f"{phrases[1]} {pick(rng, RELATIONS[opposite[scene.relation]])} {phrases[0]}"


def _place(scene: Scene, rng: np.random.Generator) -> str:
    """` at the top right`; after a comma sometimes only `top right`."""
    assert scene.place is not None
    if rng.random() < BARE_SHARE:
        return f", {' '.join(scene.place.split()[2:])}"
    return f" {pick(rng, PLACE_PHRASES[scene.place])}"


def _background(scene: Scene, rng: np.random.Generator) -> str:
    """` on a white background`, or more briefly."""
    name = pick(rng, BACKGROUND_WORDS[scene.background])
    luck = rng.random()
    if luck < BARE_SHARE:
        return f", {name} background"
    return f" on {name}" if luck < 2 * BARE_SHARE else f" on a {name} background"


def _keywords(scene: Scene, rng: np.random.Generator) -> str:
    item = scene.items[0]
    options = (
        item.colour,
        item.shape,
        f"{item.colour} {item.shape}",
        with_article(item.shape),
        f"{pick(rng, BACKGROUND_WORDS[scene.background])} background",
        pick(rng, SIZE_WORDS[item.size]),
    )
    return pick(rng, options)
