"""Kinds of tokens that coarse weights harm unevenly, which an average over a text hides.

The tokens' characters decide, so the classes are the same for all models with a tokenizer:

    other languages   a letter that is not one of A to Z
    digits            a digit
    code              a sign that programs are full of and prose is not, or an indentation
    rare words        part of a word that the tokenizer has no single token for
    rest              everything else

A token is of the first class that fits.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Literal, get_args

TokenClass = Literal["digits", "code", "rare words", "other languages", "rest"]
TOKEN_CLASSES: tuple[TokenClass, ...] = get_args(TokenClass)
"""The classes in the order in which they are shown."""

_FOREIGN = re.compile(r"[^\W\d_a-zA-Z]")
_DIGIT = re.compile(r"\d")
_CODE = re.compile(r"[{}\[\]<>=_;\\|*+^~`#@]|\n[ \t]{2,}|\t")
_WORD = re.compile(r"[^\W\d_]+")


def token_classes(pieces: Sequence[bytes]) -> list[TokenClass]:
    """The class of each token of a text.

    Args:
        pieces: the tokens' bytes, which may be parts of characters.
    """
    classes: list[TokenClass] = ["rest"] * len(pieces)
    text = b"".join(pieces).decode(errors="surrogateescape")
    ends = list(accumulate(map(len, pieces)))
    # From the last class of the list above to the first, so that earlier classes win.
    for first, last in _places(_WORD, text, ends):
        if last > first:
            classes[first : last + 1] = ["rare words"] * (last - first + 1)
    matches: tuple[tuple[TokenClass, re.Pattern[str]], ...] = (
        ("code", _CODE),
        ("digits", _DIGIT),
        ("other languages", _FOREIGN),
    )
    for name, pattern in matches:
        for first, last in _places(pattern, text, ends):
            classes[first : last + 1] = [name] * (last - first + 1)
    return classes


def _places(pattern: re.Pattern[str], text: str, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Return the first and last token of each match, given the byte offsets where tokens end."""
    chars = bytes_before = 0
    for match in pattern.finditer(text):
        start, end = match.span()
        bytes_before += _num_bytes(text[chars:start])
        first_byte = bytes_before
        bytes_before += _num_bytes(text[start:end])
        chars = end
        yield bisect_right(ends, first_byte), bisect_right(ends, bytes_before - 1)


def _num_bytes(text: str) -> int:
    return len(text.encode(errors="surrogateescape"))
