"""What is found of texts in a corpus."""

import random

import pytest

from evaluation.contamination.ngrams import corpus_words, shares_in_corpus, words_of
from evaluation.problem import EvaluationProblem


def words(num):
    return random.choices(["red", "green", "blue"], k=num)


def test_runs_are_found_as_by_searching_the_whole_text():
    corpus, size = words(400), 4
    texts = [" ".join(words(random.randint(1, 12))) for _ in range(60)]
    whole = f" {' '.join(corpus)} "
    for text, share in zip(texts, shares_in_corpus(texts, corpus, size), strict=True):
        own = text.split()
        num = min(size, len(own))
        runs = {" ".join(own[i : i + num]) for i in range(len(own) - num + 1)}
        assert share == pytest.approx(sum(f" {run} " in whole for run in runs) / len(runs))


def test_case_punctuation_and_lines_do_not_matter(tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "one.txt").write_text("Who made it?\nÖrn,")
    (tmp_path / "two.txt").write_text("in 1783!")
    found = list(corpus_words([tmp_path]))
    assert found == words_of("who made it örn in 1783")
    texts = ["made it? ÖRN", "Örn made it"]
    assert shares_in_corpus(texts, iter(found), 3) == [1.0, 0.0]


def test_a_corpus_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EvaluationProblem, match="cannot be read"):
        list(corpus_words([tmp_path / "none.txt"]))
