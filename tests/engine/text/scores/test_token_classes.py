"""Classes of tokens, however the text is cut into tokens."""

import random

import pytest

from engine.text.scores.token_classes import token_classes


@pytest.mark.parametrize(
    ("pieces", "wanted"),
    [
        (["The", " cat", "."], ["rest"] * 3),
        (["In", " ", "19", "84", ","], ["rest", "rest", "digits", "digits", "rest"]),
        (["foo", "_", "bar", " =", " {"], ["rest", "code", "rest", "code", "code"]),
        (["if:", "\n    ", "x"], ["rest", "code", "rest"]),
        (["one", "\n\n", "two"], ["rest"] * 3),
        ([" sesqui", "ped", "alian", " dogs"], ["rare words"] * 3 + ["rest"]),
        ([" bi", "ped", " dog"], ["rare words"] * 2 + ["rest"]),
        (["Größe", " ", "слово"], ["other languages", "rest", "other languages"]),
        (["“", "yes", "”", "…"], ["rest"] * 4),
        (["a1é"], ["other languages"]),
        ([], []),
        (["", "7"], ["rest", "digits"]),
    ],
)
def test_examples(pieces, wanted):
    assert token_classes([piece.encode() for piece in pieces]) == wanted


def slow_classes(text, pieces):
    """Byte by byte: each has the word (or None) and the class of its character."""
    labels, words, word = [], [], 0
    for at, char in enumerate(text):
        word += not (char.isalpha() and at and text[at - 1].isalpha())
        name = "rest"
        if char in "{}[]<>=_;\\|*+^~`#@\t":
            name = "code"
        elif char.isdecimal():
            name = "digits"
        elif char.isalpha() and not char.isascii():
            name = "other languages"
        labels += [name] * len(char.encode())
        words += [word if char.isalpha() else None] * len(char.encode())
    spans, at = [], 0
    for piece in pieces:
        spans.append((set(labels[at : at + len(piece)]), set(words[at : at + len(piece)]) - {None}))
        at += len(piece)
    counts = {}
    for _, inside in spans:
        for one in inside:
            counts[one] = counts.get(one, 0) + 1
    for found, inside in spans:
        for name in ("other languages", "digits", "code"):
            if name in found:
                yield name
                break
        else:
            yield "rare words" if any(counts[one] >= 2 for one in inside) else "rest"


def test_any_text_cut_anywhere_also_within_characters():
    rng = random.Random(random.getrandbits(64))
    for _ in range(200):
        text = "".join(rng.choice("abc de.12{_é你😀…") for _ in range(rng.randint(0, 60)))
        data, pieces, at = text.encode(), [], 0
        while at < len(data):
            size = rng.randint(1, 4)
            pieces.append(data[at : at + size])
            at += size
        assert token_classes(pieces) == list(slow_classes(text, pieces)), text
