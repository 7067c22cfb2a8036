"""BLEU and chrF are sacrebleu's, also for a part of the items."""

import random
import sys

import numpy as np
import pytest

from evaluation.corpus_scores import bleu_rows, chrf_rows
from evaluation.problem import EvaluationProblem


def test_parts_of_a_corpus_have_sacrebleus_scores():
    sacrebleu = pytest.importorskip("sacrebleu")
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "bed", "."]

    def text():
        return " ".join(random.choices(words, k=random.randint(4, 9)))

    references = [[text() for _ in range(random.randint(1, 3))] for _ in range(12)]
    answers = [" ".join([*options[0].split()[:5], text()]) for options in references]
    drawn = [random.randrange(12) for _ in range(12)]
    for rows_of, metric in ((bleu_rows, sacrebleu.BLEU()), (chrf_rows, sacrebleu.CHRF())):
        score = rows_of(answers, references)
        for some in (range(12), drawn):
            columns = [[(references[i] + [None] * 3)[n] for i in some] for n in range(3)]
            wanted = metric.corpus_score([answers[i] for i in some], columns).score
            sums = score.rows[list(some)].sum(axis=0, keepdims=True)
            assert score.values(sums)[0] == pytest.approx(wanted, abs=1e-9)
        assert score.value == pytest.approx(score.values(score.rows.sum(axis=0)[None])[0])
        assert "version:" in score.signature
        assert not np.isnan(score.per_item).any()


def test_without_sacrebleu_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(EvaluationProblem, match=r"pip install 'tandem-server\[eval\]'"):
        bleu_rows(["a"], [["b"]])
