"""Results to Markdown: nothing invented, nothing lost."""

import re

from tools.demo_image_model.evaluate import tally
from tools.demo_image_model.tables import render_results, share

COUNTS = {"objects": [9, 10], "all": [7, 10], "size": [3, 4]}


def test_share_has_an_interval():
    assert share([480, 500]) == "96.0 % (93.9-97.4)"
    assert share([0, 10]).startswith("0.0 % (0.0-")
    assert share([10, 10]).endswith("-100.0)")
    assert share([0, 0]) == "-"


def test_every_result_is_shown():
    curve = {"10": {"single": COUNTS}, "5": {"single": COUNTS}}
    edit = {"edited": [5, 6], "kept": [4, 6], "success": [3, 6]}
    text = render_results(
        {
            "edits 64": {
                "size": 64,
                "guidance": 4.0,
                "image_guidance": 1.5,
                "steps": 20,
                "kinds": {"add": edit, "all": edit},
                "contrast": {"place": {"edited": [7, 8], "kept": [7, 8], "success": [5, 8]}},
                "guidance_grid": {"2": {"1.5": edit, "1": edit}},
            },
            "images 128": {"size": 128, "guidance": 4.0, "steps": 20, "single": COUNTS},
            "images 64": {
                "size": 64,
                "guidance": 4.0,
                "steps": 20,
                "double": COUNTS,
                "circles": {"circle": [48, 50], "round": [43, 50]},
                "steps_curve": curve,
            },
        }
    )
    headings = re.findall(r"### .* (\d+) pixels", text)
    assert headings == ["64", "128", "64"]
    for number in (
        "90.0 %",
        "70.0 %",
        "75.0 %",
        "83.3 %",
        "66.7 %",
        "62.5 %",
        "96.0 %",
        "86.0 %",
    ):
        assert number in text, number
    assert text.index("\n| 5 |") < text.index("\n| 10 |")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in rows)


def test_tally_counts_what_was_asked():
    counts = tally([{"a": True}, {"a": False, "b": True}, {}])
    assert counts == {"a": (1, 2), "b": (1, 1)}
