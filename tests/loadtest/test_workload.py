import random
import statistics
from itertools import pairwise

import pytest

from loadtest.prompts import WORDS, TokenEstimate, story_prompt
from loadtest.workload import (
    Lengths,
    TokenRange,
    closed_workload,
    peers_workload,
    poisson_workload,
)

EXACT = TokenEstimate(fixed=9, per_word=1)


def num_words(prompt: str) -> int:
    return len(prompt.removeprefix("Write a story that uses these words: ").split())


def test_the_peers_workload() -> None:
    assert len(set(WORDS)) == 52
    seen: set[str] = set()
    for concurrency, count in ((1, 12), (16, 32), (32, 64)):
        for seed in range(3):
            workload = peers_workload(concurrency, seed * 1000 + concurrency)
            assert workload.concurrency == concurrency
            assert len(workload.requests) == count
            for request in workload.requests:
                assert request.max_tokens == 64
                assert request.at_s is None
                assert request.prompt.startswith("Write a story that uses these words: ")
                assert request.prompt.endswith(".")
                assert num_words(request.prompt) == 100
            seen |= {request.prompt for request in workload.requests}
    assert len(seen) == 3 * (12 + 32 + 64), "a prompt was used twice"
    assert len(peers_workload(4, 0).requests) == 12
    assert len(peers_workload(64, 0).requests) == 128
    assert len(peers_workload(64, 0, num_requests=5).requests) == 5


def test_other_lengths_than_the_peers_workloads() -> None:
    workload = peers_workload(1, 3, 4, num_words=503, output_tokens=32)
    assert [num_words(request.prompt) for request in workload.requests] == [503] * 4
    assert {request.max_tokens for request in workload.requests} == {32}
    assert workload.parameters == {"seed": 3, "num_words": 503, "output_tokens": 32}
    assert peers_workload(1, 3).parameters == {"seed": 3}


def test_a_seed_gives_the_same_workload() -> None:
    assert peers_workload(16, 5) == peers_workload(16, 5)
    assert peers_workload(16, 5) != peers_workload(16, 6)
    assert story_prompt(3) == story_prompt(3)


def test_closed_lengths_are_drawn_from_their_ranges() -> None:
    seed = random.randrange(2**32)
    workload = closed_workload(4, Lengths(200, TokenRange(50, 60), TokenRange(3, 3), seed), EXACT)
    lengths = [num_words(request.prompt) + 9 for request in workload.requests]
    assert set(lengths) == set(range(50, 61))
    assert {request.max_tokens for request in workload.requests} == {3}


def test_poisson_arrivals_have_the_asked_rate() -> None:
    seed = random.randrange(2**32)
    lengths = Lengths(4000, TokenRange(10, 10), TokenRange(10, 10), seed)
    arrivals = [r.at_s or 0.0 for r in poisson_workload(5.0, lengths, EXACT).requests]
    gaps = [after - before for before, after in pairwise(arrivals)]
    assert arrivals[0] == 0.0
    assert min(gaps) >= 0
    # 4000 exponential gaps: mean and deviation are within 10 % at more than five sigmas.
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.1)
    assert statistics.stdev(gaps) == pytest.approx(0.2, rel=0.15)


def test_token_ranges() -> None:
    assert TokenRange.parse("128") == TokenRange(128, 128)
    assert TokenRange.parse("64:256") == TokenRange(64, 256)
    assert [str(TokenRange.parse(text)) for text in ("5", "1:2")] == ["5", "1:2"]
    for text in ("", "x", "0", "-3", "9:3", "1:2:3", "1.5"):
        with pytest.raises(ValueError):
            TokenRange.parse(text)


def test_the_token_estimate_is_a_line() -> None:
    estimate = TokenEstimate.fit([(120, 190), (20, 40)])
    assert estimate == TokenEstimate(fixed=10, per_word=1.5)
    assert estimate.num_words(100) == 60
    assert estimate.num_words(1) == 1
    for probes in ([(20, 0), (120, 0)], [(20, 5), (20, 9)]):
        with pytest.raises(ValueError):
            TokenEstimate.fit(probes)
