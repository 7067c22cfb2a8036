"""`tandem eval compare`: two runs of one task, item by item."""

import json
import random

import pytest

from evaluation.difference import mcnemar


@pytest.fixture
def two_runs(words, invoke, written, tmp_path):
    """Files of two runs over 20 items: both answer the first 8 correctly, the second 9 more."""
    order = random.sample(range(20), 20)
    lines = ({"id": f"q{i}", "prompt": f"q{i}", "references": ["yes"]} for i in order)
    task = written("task.jsonl", *lines)
    files = []
    for name, num in (("a", 8), ("b", 17)):
        words.reply = lambda text, num=num: "yes" if int(text[1:]) < num else "no"
        files.append(tmp_path / f"{name}.jsonl")
        assert invoke("run", task, "-o", files[-1], "--system", name)[0] == 0
    return files


def test_the_difference_has_an_interval_a_test_and_a_number_of_items(invoke, two_runs):
    code, out, err = invoke("compare", *two_runs, "--json")
    assert code == 0, err
    report = json.loads(out)
    found = report["scores"]["exact_match"]
    assert (found["first"], found["second"]) == pytest.approx((0.4, 0.85))
    assert found["difference"] == pytest.approx(0.45)
    assert found["p_value"] == mcnemar(0, 9) == 2 / 512
    assert found["interval"] == "Agresti and Min"
    assert 0 < found["low"] < 0.45 < found["high"]
    assert 5 < found["items_needed"] < 20
    assert [asking["system"] for asking in report["askings"]] == ["a", "b"]
    code, out, _ = invoke("compare", *two_runs, "--score", "exact_match", "--score", "f1")
    assert code == 0
    assert "+0.450" in out and "0.0039" in out and str(found["items_needed"]) in out


def test_only_items_that_both_have_are_compared(invoke, two_runs):
    first, _ = two_runs
    lines = first.read_text().splitlines()
    first.write_text("\n".join([lines[0], *random.sample(lines[1:], 15)]) + "\n")
    report = json.loads(invoke("compare", *two_runs, "--json")[1])
    assert (report["num_compared"], report["num_items"]) == (15, 20)
    assert "5 of 20 items have no answer" in report["notes"][0]


def test_runs_that_cannot_be_compared(words, invoke, written, tmp_path, two_runs):
    first, _ = two_runs
    other = tmp_path / "other.jsonl"

    def refused(*lines):
        other.unlink(missing_ok=True)
        assert invoke("run", written("other_task.jsonl", *lines), "-o", other)[0] == 0
        code, _, err = invoke("compare", first, other)
        assert code == 2
        return err

    assert "no item in common" in refused({"id": "z", "prompt": "q1", "references": ["yes"]})
    changed = {"id": "q1", "prompt": "q1", "references": ["Yes"]}
    assert "'q1' is not the same" in refused(changed)
    assert "asked for the same" in refused(
        {"id": "q1", "prompt": "q", "choices": ["a", "b"], "answer": 0}
    )
    assert "two files are one" in invoke("compare", first, first)[2]
    assert "needs choices" in invoke("compare", *two_runs, "--score", "multiple_choice")[2]
