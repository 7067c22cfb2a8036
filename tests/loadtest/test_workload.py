import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from loadtest.prompts import WORDS, TokenEstimate, story_prompt
from loadtest.workload import (
    TokenRange,
    TraceRow,
    TraceScale,
    closed_workload,
    load_trace,
    peers_workload,
    poisson_workload,
    trace_workload,
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
    workload = closed_workload(4, 200, TokenRange(50, 60), TokenRange(3, 3), seed, EXACT)
    lengths = [num_words(request.prompt) + 9 for request in workload.requests]
    assert set(lengths) == set(range(50, 61))
    assert {request.max_tokens for request in workload.requests} == {3}


def test_poisson_arrivals_have_the_asked_rate() -> None:
    seed = random.randrange(2**32)
    one = TokenRange(10, 10)
    arrivals = [r.at_s or 0.0 for r in poisson_workload(5.0, 4000, one, one, seed, EXACT).requests]
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


TRACE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,3960,109
2023-11-16 18:16:46.6805900,10,5000
"""


def test_a_trace_is_read_and_scaled(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    rows = load_trace(path)
    assert rows[0] == TraceRow(0.0, 374, 44)
    assert [row.at_s for row in rows] == pytest.approx([0, 4.314579, 60])
    scale = TraceScale(speed=2, length=0.5, max_context=1000)
    workload = trace_workload(rows, scale, 1, EXACT, "trace.csv")
    assert [request.at_s for request in workload.requests] == pytest.approx([0, 2.1572895, 30])
    assert [request.max_tokens for request in workload.requests] == [22, 54, 999]
    assert [num_words(r.prompt) for r in workload.requests] == [187 - 9, 1000 - 54 - 9, 1]
    assert workload.parameters["trace"] == "trace.csv"
    late = trace_workload(rows[1:], scale, 1, EXACT)
    assert late.requests[0].at_s == 0


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "TIMESTAMP,ContextTokens,GeneratedTokens\n"])
def test_files_that_are_no_trace(tmp_path: Path, text: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="trace"):
        load_trace(path)


def test_the_token_estimate_is_a_line() -> None:
    estimate = TokenEstimate.fit([(120, 190), (20, 40)])
    assert estimate == TokenEstimate(fixed=10, per_word=1.5)
    assert estimate.num_words(100) == 60
    assert estimate.num_words(1) == 1
    for probes in ([(20, 0), (120, 0)], [(20, 5), (20, 9)]):
        with pytest.raises(ValueError):
            TokenEstimate.fit(probes)
