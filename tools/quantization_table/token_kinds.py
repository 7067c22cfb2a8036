"""Kinds of tokens that coarse weights may harm unevenly, by their place in a word.

    digits           the token has a digit
    word beginnings  it has a letter, and the first one follows no other letter
    continuations    it has a letter, and the first one follows another
    code signs       it has a sign that programs are full of and prose is not
    white space      spaces, tabs and line ends only
    punctuation      everything else

A token is of the first kind that fits. `engine.text.scores.token_classes` has one class for all
that is not English; these kinds are found in any language. Bytes beyond ASCII count as letters,
so that tokens of half a character have a kind, too.
"""

import re
from collections.abc import Sequence

KINDS = (
    "word beginnings",
    "continuations",
    "digits",
    "punctuation",
    "code signs",
    "white space",
)
_LETTER = re.compile(rb"[A-Za-z\x80-\xff]")
_CODE = re.compile(rb"[{}\[\]<>=_;\\|*+^~`#@]")


def token_kinds(pieces: Sequence[bytes]) -> list[str]:
    """The kind of each token of a text, given the tokens' bytes."""
    kinds = []
    before = b""
    for piece in pieces:
        kinds.append(_kind(piece, before[-1:]))
        before = piece or before
    return kinds


def _kind(piece: bytes, before: bytes) -> str:
    """The kind of a token after a byte, if there is one."""
    if re.search(rb"\d", piece):
        return "digits"
    if letter := _LETTER.search(piece):
        earlier = before + piece[: letter.start()]
        return "continuations" if _LETTER.match(earlier[-1:]) else "word beginnings"
    if _CODE.search(piece):
        return "code signs"
    return "punctuation" if piece.strip() else "white space"
