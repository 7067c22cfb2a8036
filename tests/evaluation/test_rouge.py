"""ROUGE has the numbers of the package rouge-score."""

import random

import pytest

from evaluation.rouge import rouge_1, rouge_2, rouge_l
from evaluation.text_scores import best_of


def test_a_case_worked_by_hand():
    answer, reference = "the cat was under the bed", "The cat, the bed!"
    assert rouge_1(answer, reference) == pytest.approx(2 * 4 / (6 + 4))
    assert rouge_2(answer, reference) == pytest.approx(2 * 2 / (5 + 3))
    assert rouge_l(answer, reference) == pytest.approx(2 * 4 / (6 + 4))
    # In another order, the longest common subsequence is shorter: "the bed".
    assert rouge_l("the bed the cat", reference) == pytest.approx(2 * 2 / (4 + 4))


def test_texts_without_words_get_nothing():
    assert [score("…", "a b") for score in (rouge_1, rouge_2, rouge_l)] == [0, 0, 0]
    assert rouge_2("one", "one") == 0  # there is no pair of words


def test_the_numbers_are_those_of_rouge_score():
    rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    words = ["the", "The", "cat", "cats", "über", "don't", "x_1", "42", "İ", "-", "a.b"]

    def text():
        return " ".join(random.choices(words, k=random.randrange(12)))

    for _ in range(200):
        answer, references = text(), [text() for _ in range(random.randint(1, 3))]
        theirs = scorer.score_multi(references, answer)
        for name, score in (("rouge1", rouge_1), ("rouge2", rouge_2), ("rougeL", rouge_l)):
            found = best_of(score, answer, references)
            assert found == pytest.approx(theirs[name].fmeasure, abs=1e-12), (name, answer)
