import numpy as np
import pytest

from loadtest.metrics import Slo, distribution_ms, max_in_flight, percentile, summarise
from loadtest.record import RequestRecord


def record(index: int = 0, **fields: object) -> RequestRecord:
    defaults = {"max_tokens": 4, "text_s": [0.1, 0.2, 0.4, 0.5], "end_s": 0.6, "output_tokens": 4}
    return RequestRecord(index, **(defaults | fields))  # type: ignore[arg-type]


def test_percentiles_equal_numpys() -> None:
    for size in (1, 2, 3, 10, 101, 1000):
        values = np.sort(np.random.exponential(size=size))
        for q in (0, 1, 50, 90, 99, 99.9, 100):
            expected = np.percentile(values, q)
            assert percentile(values.tolist(), q) == pytest.approx(expected), (size, q)


def test_no_values_have_no_distribution() -> None:
    assert distribution_ms([]) is None
    with pytest.raises(ValueError):
        percentile([], 50)


def test_distribution_in_milliseconds() -> None:
    summary = distribution_ms([0.003, 0.001, 0.002])
    assert summary == {"mean": 2.0, "p50": 2.0, "p90": 2.8, "p99": 2.98, "max": 3.0}


def test_summary_of_a_run() -> None:
    records = [
        record(0, prompt_tokens=10, cached_tokens=3),
        record(1, sent_s=0.5, prompt_tokens=11, output_tokens=3),
        record(2, sent_s=0.5, error="HTTP 500: no", end_s=0.1, text_s=[0.05]),
        record(3, sent_s=0.5, error="HTTP 500: no", text_s=[], output_tokens=None),
    ]
    summary = summarise(records, wall_s=2.0, num_planned=6)
    assert summary["num_planned"] == 6
    assert summary["num_sent"] == 4
    assert summary["num_ok"] == 2
    assert summary["num_failed"] == 2
    assert summary["num_short"] == 1
    assert summary["errors"] == {"HTTP 500: no": 2}
    assert summary["output_tokens"] == 7
    assert summary["output_tok_s"] == 3.5
    assert summary["request_s"] == 1.0
    assert summary["prompt_tokens"] == 21
    assert summary["cached_tokens"] == 3
    assert summary["ttft_ms"]["max"] == 100.0
    assert summary["itl_ms"]["p50"] == pytest.approx(100.0)
    assert summary["itl_ms"]["max"] == pytest.approx(200.0)
    assert summary["tpot_ms"]["max"] == pytest.approx(400 / 2)  # three tokens in the second one
    assert summary["e2e_ms"]["mean"] == pytest.approx(600)
    assert summary["max_in_flight"] == 4


def test_chunks_stand_in_for_missing_usage_and_are_counted() -> None:
    summary = summarise([record(output_tokens=None)], wall_s=1.0, num_planned=1)
    assert summary["output_tokens"] == 4
    assert summary["num_without_usage"] == 1


def test_a_run_without_a_single_request() -> None:
    summary = summarise([], wall_s=0.0, num_planned=3, slo=Slo.parse("ttft=1"))
    assert summary["output_tok_s"] == 0.0
    assert summary["ttft_ms"] is None
    assert summary["slo"]["ratio"] == 0.0


def test_lateness_of_an_open_loop() -> None:
    summary = summarise([record(at_s=1.0, sent_s=1.25)], wall_s=2.0, num_planned=1)
    assert summary["send_lateness_ms"]["max"] == 250.0


@pytest.mark.parametrize(
    ("limits", "met"),
    [
        ("ttft=100", True),
        ("ttft=99", False),
        ("itl=200", True),
        ("itl=150", False),
        ("tpot=134", True),
        ("tpot=133", False),
        ("e2e=600", True),
        ("e2e=599.9", False),
        ("ttft=100, itl=200,tpot=134 ,e2e=600", True),
        ("ttft=100,e2e=1", False),
    ],
)
def test_objectives(limits: str, met: bool) -> None:
    assert Slo.parse(limits).is_met(record()) is met


def test_a_failed_request_never_meets_an_objective() -> None:
    slo = Slo.parse("ttft=1000")
    good, bad = record(0), record(1, error="timeout")
    summary = summarise([good, bad], wall_s=2.0, num_planned=2, slo=slo)
    assert summary["slo"]["num_met"] == 1
    assert summary["slo"]["ratio"] == 0.5
    assert summary["slo"]["goodput_request_s"] == 0.5


def test_goodput_at_several_times_between_tokens() -> None:
    """Judged by 99 % of a request's gaps, whose longest ones here are 40, 90, 150 and 300 ms."""
    records = [
        record(i, text_s=[0.1, 0.11, 0.11 + longest, 0.12 + longest])
        for i, longest in enumerate((0.04, 0.09, 0.15, 0.3))
    ]
    failed = record(4, text_s=[0.1, 0.11], error="timeout")
    summary = summarise([*records, failed], wall_s=2.0, num_planned=5)
    assert summary["itl_goodput_request_s"] == {"50": 0.5, "100": 1.0, "200": 1.5}
    assert summarise([], 0.0, 0)["itl_goodput_request_s"] == {"50": 0.0, "100": 0.0, "200": 0.0}


def test_one_token_has_no_gaps_to_miss() -> None:
    single = record(text_s=[0.1], output_tokens=1)
    assert single.tpot_s is None
    assert Slo.parse("itl=1,tpot=1").is_met(single)


@pytest.mark.parametrize(
    "text", ["", "latency=3", "ttft", "ttft=x", "ttft=-1", "ttft=nan", "itl=0"]
)
def test_objectives_that_mean_nothing(text: str) -> None:
    with pytest.raises(ValueError):
        Slo.parse(text)


def test_most_in_flight() -> None:
    spans = [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (1.2, 0.1)]
    records = [record(i, sent_s=start, end_s=length) for i, (start, length) in enumerate(spans)]
    assert max_in_flight(records) == 3
    assert max_in_flight(records[:1]) == 1
    assert max_in_flight([]) == 0
