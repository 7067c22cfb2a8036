"""The part of docs/sampling.md about accuracy is what was measured."""

import json
import random

import pytest

from loadtest.markdown import page_with
from tools.sampling_study.__main__ import DATA, DOCS
from tools.sampling_study.page import COMMAND, accuracy, first_clear, sections


def row(temperature, value, high):
    compared = {"difference": value - 0.5, "low": value - 0.7, "high": high}
    ends = {"low": value - 0.1, "high": value + 0.1}
    return {"temperature": temperature, "value": value, **ends, "compared": compared}


@pytest.mark.parametrize(
    ("highs", "clear"),
    [
        ((0, -0.1, -0.2, -0.3), 0.3),
        # A difference that is clear once does not count if a later one is not.
        ((0, -0.1, 0.2, -0.3), 2.0),
        ((0, -0.1, -0.2, 0.0), None),
    ],
)
def test_accuracy_falls_where_no_later_interval_reaches_zero(highs, clear):
    rows = [row(t, 0.5, high) for t, high in zip((0, 0.3, 1.0, 2.0), highs, strict=True)]
    assert first_clear(rows) == clear


def test_the_table_says_what_was_measured():
    value = random.uniform(0.2, 0.4)
    rows = [row(0, 0.5, 0), row(1.5, value, -0.05)]
    machine = {"cores": 2, "cpu": "A Processor", "cpu_family_model": "6/1"}
    found = {"label": "", "command": "python", "started_at": "2026-01-02T03", "commit": "01234"}
    found |= {"uncommitted_changes": False, "machine": machine}
    text = accuracy(found | {"tasks": {"arithmetic": rows, "options": rows[:1] * 2}})
    told = f"| 1.5 | {100 * value:.0f} % ({100 * value - 10:.0f} to {100 * value + 10:.0f}) |"
    assert told in text and f"| {100 * value - 50:+.0f} (" in text
    assert "40 sums: from a temperature of 1.5 on" in text
    assert "60 questions with options: no interval" in text


def test_the_page_has_the_numbers_of_its_data():
    page = (DOCS / "sampling.md").read_text()
    written = page_with(page, sections(json.loads(DATA.read_text())), COMMAND)
    assert written == page, "run: python -m tools.sampling_study"
