"""Sums of scores against statistics written out."""

import math
import random
import statistics

import pytest

from engine.text.scores.passages import Passage, TokenFacts
from engine.text.scores.sums import Comparison, ScoreSums, TextScores, TokenScore
from engine.text.scores.token_classes import TOKEN_CLASSES


def random_scores(rng, count):
    return [
        TokenScore(
            rng.expovariate(0.5),
            Comparison(rng.expovariate(0.5), rng.expovariate(9), rng.random() < 0.8),
        )
        for _ in range(count)
    ]


def test_a_report_is_means_and_their_standard_errors():
    rng = random.Random(random.getrandbits(64))
    scores = random_scores(rng, 50)
    sizes = [rng.randint(0, 6) for _ in scores]
    sums = ScoreSums()
    for score, size in zip(scores, sizes, strict=True):
        sums.add(score, size)
    surprises = [score.surprise for score in scores]
    divergences = [score.comparison.divergence for score in scores]
    # llama.cpp's error: that of the mean, times the perplexity.
    error = statistics.stdev(surprises) / math.sqrt(50)
    perplexity = math.exp(statistics.mean(surprises))
    assert sums.report() == pytest.approx(
        {
            "tokens": 50,
            "perplexity": perplexity,
            "perplexity_error": perplexity * error,
            "bits_per_byte": sum(surprises) / math.log(2) / sum(sizes),
            "original_perplexity": math.exp(
                statistics.mean(score.comparison.surprise for score in scores)
            ),
            "kl_divergence": statistics.mean(divergences),
            "kl_divergence_error": statistics.stdev(divergences) / math.sqrt(50),
            "top1_agreement": statistics.mean(score.comparison.agrees for score in scores),
        }
    )


def test_classes_add_up_to_the_whole():
    rng = random.Random(random.getrandbits(64))
    scores, total = TextScores(), []
    for _ in range(3):
        some = random_scores(rng, 20)
        facts = [TokenFacts(rng.randint(1, 4), rng.choice(TOKEN_CLASSES)) for _ in some]
        scores.add(Passage([0] * 20, facts), some)
        total += zip(some, facts, strict=True)
    report = scores.report()
    assert list(report["classes"]) == [name for name in TOKEN_CLASSES if name in report["classes"]]
    assert sum(one["tokens"] for one in report["classes"].values()) == report["tokens"] == 60
    for name, one in report["classes"].items():
        mean = statistics.mean(score.surprise for score, fact in total if fact.token_class == name)
        assert one["perplexity"] == pytest.approx(math.exp(mean))


def test_without_an_original_and_bytes_nothing_is_said_of_them():
    scores = TextScores()
    scores.add(Passage([0] * 4, None), [TokenScore(1.0)])
    assert scores.report() == {
        "tokens": 1,
        "perplexity": pytest.approx(math.e),
        "perplexity_error": 0.0,
        "bits_per_byte": None,
        "classes": {},
    }


def test_what_cannot_be_is_no_overflow():
    sums = ScoreSums()
    sums.add(TokenScore(9999.0), 1)
    assert math.isfinite(sums.report()["perplexity"])
