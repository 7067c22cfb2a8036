"""Scores of one answer against acceptable ones: equality, containment, F1 of words."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

PairScore = Callable[[str, str], float]
"""A score from 0 to 1 of an answer and a reference."""


def best_of(score: PairScore, answer: str, references: Sequence[str]) -> float:
    """The score against the reference that fits best."""
    return max(score(answer, reference) for reference in references)


def exact_match(answer: str, reference: str) -> float:
    """1 if the texts are equal but for white space at their ends and its kind and amount within."""
    return float(_spaced(answer) == _spaced(reference))


def exact_match_squad(answer: str, reference: str) -> float:
    """1 if the texts are equal after SQuAD's normalisation."""
    return float(squad_words(answer) == squad_words(reference))


def contains(answer: str, reference: str) -> float:
    """1 if the reference occurs anywhere in the answer; case and white space do not matter."""
    return float(_spaced(reference).casefold() in _spaced(answer).casefold())


def f1(answer: str, reference: str) -> float:
    """SQuAD's F1: the harmonic mean of precision and recall of words, each counted as often as it
    occurs. Texts without words fit only each other."""
    words, wanted = squad_words(answer), squad_words(reference)
    if not words or not wanted:
        return float(words == wanted)
    common = sum((Counter(words) & Counter(wanted)).values())
    return 2 * common / (len(words) + len(wanted))


def squad_words(text: str) -> list[str]:
    """The words of a text in small letters, without ASCII punctuation and English articles."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _spaced(text: str) -> str:
    return " ".join(text.split())
