"""Equality, containment and F1 of words."""

import random
import re
import string
from collections import Counter

import pytest

from evaluation.scores import Extraction
from evaluation.text_scores import best_of, contains, exact_match, exact_match_squad, f1


@pytest.mark.parametrize(
    ("answer", "reference", "plain", "squad", "within"),
    [
        ("4", "4", 1, 1, 1),
        (" 4\n", "4", 1, 1, 1),
        ("New  York", "New\nYork", 1, 1, 1),
        ("-4", "4", 0, 1, 1),
        ("The answer.", "answer", 0, 1, 1),
        ("paris", "Paris", 0, 1, 1),
        ("It is PARIS!", "Paris", 0, 0, 1),
        ("an apple", "apple", 0, 1, 1),
        ("5", "4", 0, 0, 0),
        ("", "4", 0, 0, 0),
    ],
)
def test_equality_and_containment(answer, reference, plain, squad, within):
    assert exact_match(answer, reference) == plain
    assert exact_match_squad(answer, reference) == squad
    assert contains(answer, reference) == within


def test_f1_of_a_case_worked_by_hand():
    # Words: cat sat mat | cat sat on mat: 3 in common, so P = 1, R = 3/4.
    assert f1("The cat sat mat.", "a cat sat on the mat") == pytest.approx(6 / 7)
    assert f1("a the", "") == 1.0
    assert f1("", "cat") == 0.0


def official_f1(prediction, truth):
    """The script of SQuAD 2.0."""

    def normalized(text):
        text = "".join(c for c in text.lower() if c not in set(string.punctuation))
        return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())

    gold, found = normalized(truth).split(), normalized(prediction).split()
    if not gold or not found:
        return int(gold == found)
    num_same = sum((Counter(gold) & Counter(found)).values())
    if num_same == 0:
        return 0
    precision, recall = num_same / len(found), num_same / len(gold)
    return 2 * precision * recall / (precision + recall)


def test_f1_is_that_of_squad():
    def text():
        return " ".join(random.choices(["the", "A", "cat,", "Cat", "sat.", "ön", "-", "an"], k=4))

    for _ in range(300):
        answer, reference = text()[: random.randrange(20)], text()
        assert f1(answer, reference) == pytest.approx(official_f1(answer, reference))


def test_the_best_reference_counts():
    assert best_of(exact_match, "4", ["four", "4"]) == 1
    assert best_of(exact_match, "4", ["four", "five"]) == 0


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        (r"-?\d+", "6 * 7 is 42.", "42"),
        (r"#### (.*)", "so\n#### 12\n", "12"),
        (r"(yes)|no", "no", ""),
        (r"\d", "none", ""),
    ],
)
def test_the_last_match_is_scored(pattern, text, found):
    extraction = Extraction.of(pattern)
    assert extraction.of_text(text) == found
