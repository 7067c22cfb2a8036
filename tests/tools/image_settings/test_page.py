"""The table of settings of images says what was measured."""

import random

from tools.image_settings.judging import SCORES
from tools.image_settings.page import compared

MACHINE = {"cores": 2, "cpu": "A Processor", "cpu_family_model": "6/1"}
FOUND = {"label": "", "command": "python", "started_at": "2026-01-02T03", "commit": "01234"}
FOUND |= {"uncommitted_changes": False, "machine": MACHINE}


def score(second, **changes):
    row = {"first": 0.5, "second": second, "difference": second - 0.5, "asked": 40}
    row |= {"interval": {"low": second - 0.6, "high": second - 0.4}, "p_value": 0.25}
    return row | {"detectable": 0.11} | changes


def test_the_table_says_what_was_measured():
    value, changed = random.uniform(0, 1), random.uniform(0, 1)
    rows = {
        "5 steps": {"scores": dict.fromkeys(SCORES, score(value)), "changed": changed},
        "lcm": {
            "scores": dict.fromkeys(SCORES, score(0.5, detectable=0.19, p_value=0.00021)),
            "changed": 0.0,
        },
    }
    text = compared(FOUND | {"settings": rows})
    interval = f"{100 * value - 50:+.1f} ({100 * value - 60:+.1f} to {100 * value - 40:+.1f})"
    cells = [f"{100 * value:.1f} %", interval, "0.2500", *[interval] * 3, f"{100 * changed:.1f} %"]
    assert f"| 5 steps | {' | '.join(cells)} |" in text
    assert "| 0.0002 |" in text and "| *defaults* | 50.0 % |" in text
    assert "below 0.0250" in text and "difference of 19 points" in text and "40 prompts" in text
