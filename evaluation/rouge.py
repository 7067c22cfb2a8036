"""ROUGE, with the numbers of the package rouge-score without its stemmer.

Words are runs of the letters a to z and of digits, in small letters, so other scripts have none.
Lin, ROUGE: A Package for Automatic Evaluation of Summaries, 2004.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from evaluation.text_scores import PairScore

_WORD = re.compile(r"[a-z0-9]+")


def rouge_n(answer: str, reference: str, *, size: int) -> float:
    """F-measure of the runs of `size` words that both texts have."""
    runs, wanted = (_runs(_words(text), size) for text in (answer, reference))
    return _f_measure((runs & wanted).total(), runs.total(), wanted.total())


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words."""
    words, wanted = _words(answer), _words(reference)
    return _f_measure(_longest_common(words, wanted), len(words), len(wanted))


rouge_1: PairScore = partial(rouge_n, size=1)
rouge_2: PairScore = partial(rouge_n, size=2)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[start:] for start in range(size)), strict=False))


def _longest_common(words: Sequence[str], wanted: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(wanted) + 1)  # lengths for the words so far and each beginning of `wanted`
    for word in words:
        longest = [0]
        for other, (diagonal, above) in zip(wanted, pairwise(row), strict=True):
            longest.append(diagonal + 1 if word == other else max(above, longest[-1]))
        row = longest
    return row[-1]


def _f_measure(common: int, num: int, num_wanted: int) -> float:
    if common == 0:
        return 0.0
    precision, recall = common / num, common / num_wanted
    return 2 * precision * recall / (precision + recall)
