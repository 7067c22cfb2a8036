"""Finds a text's sentences and what they are about, by their letters alone, which is good enough
for comparisons."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import NamedTuple

# Possessive quantifiers, so that a text of nothing but marks is read once.
_END = re.compile(
    r"(?<![.!?])[.!?]++[\"')\]”\u2019]*+(?=\s|$)|(?<![。\uff01\uff1f])[。\uff01\uff1f]++[”\u2019」』\uff09]*+"
)
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"  # Japanese and Chinese
)
"""Letters of scripts that put no spaces between words."""
_LETTER = rf"[^\W{_UNSPACED}]"
_WORD = re.compile(rf"(?P<unspaced>[{_UNSPACED}]+)|{_LETTER}+(?:['\u2019.,\-]{_LETTER}+)*")
_NEGATIONS = frozenset({"no", "not", "never", "none", "nor", "neither", "without", "cannot"})
_SHORTEST_TERM = 4
"""Number of letters; most shorter words occur in any text."""


class Sentence(NamedTuple):
    """A stretch of a text."""

    start: int
    text: str

    @property
    def characters(self) -> list[int]:
        return [self.start, self.start + len(self.text)]


class Terms(NamedTuple):
    """The terms of a text, as far as its words show them."""

    content: dict[str, None]
    """Longer words and numbers in their order, in lower case; for scripts without spaces, each pair
    of adjacent letters."""
    details: dict[str, None]
    """Numbers, and words that begin with a capital inside a sentence."""
    is_negated: bool


def sentences_of(text: str) -> Iterator[Sentence]:
    """The sentences of each line, without surrounding white space; none is empty."""
    at = 0
    for line in text.splitlines(keepends=True):
        ends = (match.end() for match in _END.finditer(line))
        for start, end in pairwise(chain([0], ends, [len(line)])):
            piece = line[start:end]
            sentence = piece.strip()
            if sentence:
                indent = len(piece) - len(piece.lstrip())
                yield Sentence(at + start + indent, sentence)
        at += len(line)


def terms_of(sentence: str) -> Terms:
    """The terms of a sentence, or of a passage: the first word of a text counts as a detail only if
    it holds a digit."""
    content: dict[str, None] = {}
    details: dict[str, None] = {}
    is_negated = False
    for number, match in enumerate(_WORD.finditer(sentence)):
        word = match.group()
        if match["unspaced"]:
            content.update(dict.fromkeys(_pairs(word)))
            continue
        term = _normal(word)
        has_digit = any(char.isdigit() for char in term)
        is_negated |= term in _NEGATIONS or term.endswith(("n't", "n\u2019t"))
        if has_digit or len(term) >= _SHORTEST_TERM:
            content[term] = None
        if has_digit or (number > 0 and word[0].isupper()):
            details[term] = None
    return Terms(content, details, is_negated)


def words_of(text: str) -> frozenset[str]:
    """All words of a text, in the form of terms."""
    matches = _WORD.finditer(text)
    words = (_pairs(m[0]) if m["unspaced"] else (_normal(m[0]),) for m in matches)
    return frozenset(chain.from_iterable(words))


def _pairs(run: str) -> Sequence[str]:
    """Each pair of adjacent letters, which stand for words in scripts without spaces."""
    return [run[at : at + 2] for at in range(max(1, len(run) - 1))]


def _normal(word: str) -> str:
    # Full-width digits and Latin letters count as the normal ones.
    word = word if word.isascii() else unicodedata.normalize("NFKC", word)
    word = word.casefold().removesuffix("'s").removesuffix("\u2019s")
    return word.replace(",", "") if word[0].isdigit() else word
