"""Kinds of tokens: by hand on texts cut at known places, and independent of where a text is cut."""

import random

import pytest

from tools.quantization_table.token_kinds import KINDS, token_kinds

NAMES = {
    "b": "word beginnings",
    "c": "continuations",
    "d": "digits",
    "p": "punctuation",
    "s": "code signs",
    "w": "white space",
}


@pytest.mark.parametrize(
    ("pieces", "kinds"),
    [
        ("The| quick|er| fox", "bbcb"),
        ("at| |7|:|45|pm|.", "bwdpdbp"),
        ("def| f|(x|):|\n   | re|turn", "bbbpwbc"),
        ("a|_|b| =|=", "bsbss"),
        ("gr|ö|ße", "bcc"),
        ("don|'t", "bb"),
    ],
)
def test_kinds_by_hand(pieces, kinds):
    cut = [piece.encode() for piece in pieces.split("|")]
    assert token_kinds(cut) == [NAMES[kind] for kind in kinds]


def test_a_token_without_bytes_divides_no_word():
    assert token_kinds([b"x", b"", b"y"])[2] == "continuations"


def test_a_word_has_one_beginning_wherever_it_is_cut():
    word = random.choice(["straße", "hello", "привет", "कानून"]).encode()
    places = sorted(random.sample(range(1, len(word)), random.randint(1, 4)))
    parts = [word[a:b] for a, b in zip([0, *places], [*places, len(word)], strict=True)]
    kinds = token_kinds([b" ", *parts, b"!"])
    assert kinds == [
        "white space",
        "word beginnings",
        *["continuations"] * (len(parts) - 1),
        "punctuation",
    ]
    assert set(kinds) <= set(KINDS)
