"""What is said about a scene. Captions leave things out, so that words act alone too.

Every word that a caption or an instruction can hold is in `vocabulary()`.
"""

import numpy as np

from tools.demo_image_model.palette import (
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
)
from tools.demo_image_model.scenes import CENTER, Item, Scene, pick

EMPTY_SHARE = 0.10
KEYWORD_SHARE = 0.12
SIZE_SHARE, COLOUR_SHARE = 0.4, 0.92
"""Of the objects in captions, those whose size and whose colour is said."""
PLACE_SHARE, CENTER_SAID_SHARE = 0.75, 0.2
"""Of single objects, those whose place is said: the centre needs saying less than the others do.

So an object asked for without a place lies in the centre most of the time. With all places equally
likely and guidance on top, too many samples put the object in two of them at once.
"""
OPENINGS = ("a picture of", "an image of", "a drawing of", "a photo of", "draw")
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big")}
EXTRA_WORDS = (
    "make the turn into add remove delete change replace with move to background color colour "
    "shape it one object and on in at of . ,"
)


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that is true of the scene; may be empty, for classifier-free guidance."""
    luck = rng.random()
    if luck < EMPTY_SHARE:
        return ""
    # Of two objects none is said alone: whoever asks for "red circle" wants no second object.
    if luck < EMPTY_SHARE + KEYWORD_SHARE and len(scene.items) == 1:
        return _keywords(scene, rng)
    text = _body(scene, rng)
    if rng.random() < 0.4:
        text += f" on a {scene.background} background"
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
    texts = [*COLOURS, *BACKGROUNDS, *SHAPES, *SIZES, *PLACES, *OPENINGS, EXTRA_WORDS, "a an"]
    texts += [phrase for phrases in RELATIONS.values() for phrase in phrases]
    texts += [word for words in SIZE_WORDS.values() for word in words]
    return sorted({word for text in texts for word in text.split()})


def _body(scene: Scene, rng: np.random.Generator) -> str:
    phrases = [with_article(noun_phrase(item, rng)) for item in scene.items]
    if len(phrases) == 1:
        share = CENTER_SAID_SHARE if scene.place == CENTER else PLACE_SHARE
        return f"{phrases[0]} {scene.place}" if rng.random() < share else phrases[0]
    assert scene.relation is not None
    if rng.random() < 0.25:
        order = rng.permutation(2)
        return f"{phrases[order[0]]} and {phrases[order[1]]}"
    if rng.random() < 0.5:
        return f"{phrases[0]} {pick(rng, RELATIONS[scene.relation])} {phrases[1]}"
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above"}
    return f"{phrases[1]} {pick(rng, RELATIONS[opposite[scene.relation]])} {phrases[0]}"


def _keywords(scene: Scene, rng: np.random.Generator) -> str:
    item = scene.items[0]
    options = (
        item.colour,
        item.shape,
        f"{item.colour} {item.shape}",
        with_article(item.shape),
        f"{scene.background} background",
        pick(rng, SIZE_WORDS[item.size]),
    )
    return pick(rng, options)
