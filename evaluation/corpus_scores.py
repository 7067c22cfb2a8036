"""BLEU and chrF of a whole corpus, by sacrebleu."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np

from evaluation.problem import needs_extra
from evaluation.score_rows import Floats, ScoreRows


def bleu_rows(answers: Sequence[str], references: Sequence[Sequence[str]]) -> ScoreRows:
    """BLEU with sacrebleu's defaults, from 0 to 100."""
    return _rows(_sacrebleu().BLEU(), answers, references)


def chrf_rows(answers: Sequence[str], references: Sequence[Sequence[str]]) -> ScoreRows:
    """chrF (chrF2) with sacrebleu's defaults, from 0 to 100."""
    return _rows(_sacrebleu().CHRF(), answers, references)


def _sacrebleu() -> Any:
    try:
        import sacrebleu
    except ImportError:
        raise needs_extra("BLEU and chrF", "sacrebleu") from None
    return sacrebleu


def _rows(metric: Any, answers: Sequence[str], references: Sequence[Sequence[str]]) -> ScoreRows:
    # sacrebleu has a list per number of the reference, with None where an item has fewer.
    columns = [list(column) for column in zip_longest(*references)]
    metric.corpus_score(answers, columns)  # makes the signature know how many references there are
    # These two methods are what sacrebleu's own bootstrap calls.
    statistics = metric._extract_corpus_statistics(answers, columns)

    def values(sums: Floats) -> Floats:
        counts = sums.round().astype(int).tolist()
        return np.array([metric._compute_score_from_stats(row).score for row in counts])

    return ScoreRows(
        np.array(statistics, np.float64), values, signature=str(metric.get_signature())
    )
