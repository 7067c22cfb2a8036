import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.markdown import END_MARK, begin_mark
from loadtest.metrics import summarise
from loadtest.record import RequestRecord
from loadtest.report import COMMAND, comparison_section, render_page
from loadtest.results import COMPARISON_FORMAT, RUN_FORMAT, save_result
from tests.helpers.loadtest.documents import CPU, provenance


def run(gap_s: float, wall_s: float, memory_mib: float) -> dict[str, Any]:
    records = [
        RequestRecord(i, 3, text_s=[0.1, 0.1 + gap_s, 0.1 + 2 * gap_s], end_s=1, output_tokens=3)
        for i in range(2)
    ]
    return {
        "workload": {"name": "peers", "concurrency": 1},
        "partial": False,
        "summary": summarise(records, wall_s, 2),
        "cpu": CPU,
        "memory": {"pss_mib": memory_mib, "peak_pss_mib": memory_mib + 1},
        "requests": [record.to_row() for record in records],
    }


def comparison() -> dict[str, Any]:
    runs = []
    for server, factor in (("ours", 1.0), ("theirs", 2.0)):
        for repeat, wall_s in enumerate((1.0, 3.0, 2.0)):
            point = {"server": server, "repeat": repeat, "concurrency": 1}
            noisy = server == "theirs" and repeat == 0
            runs.append(point | {"quiet": not noisy} | run(0.01 * factor, wall_s * factor, 500))
    return {
        **provenance(COMPARISON_FORMAT, "A comparison"),
        "servers": [
            {"name": name, "version": f"{name} 1.0", "model": "m", "command": f"exec {name}"}
            for name in ("ours", "theirs")
        ],
        "concurrencies": [1, 16],
        "repeats": 3,
        "max_others": 0.04,
        "partial": False,
        "discarded": [],
        "starts": [
            {"server": name, "ready_s": ready_s}
            for name, ready_s in (("ours", 2.0), ("ours", 4.0), ("theirs", 60.0))
        ],
        "runs": runs,
    }


def ratios_of(page: str) -> list[str]:
    """The rows of a comparison's table of ratios."""
    return page.split("| ratio of medians |")[1].split("\n\n")[0].splitlines()[2:]


def test_a_comparison_becomes_tables() -> None:
    page = comparison_section(comparison())
    assert "A comparison. 2026-01-01, commit 0123456789ab, 2 cores of Some CPU" in page
    # 6 tokens in 1, 3 and 2 seconds: 6, 2 and 3 tok/s.
    assert "| ours | 3.0 | 1 | 3 (2-6) | 100 / 100 | 10.0 / 10.0 | 1.00 / 1.00 | 500 | 0 |" in page
    assert (
        "| theirs | 60.0 | 1 | 2 (1-3) † | 100 / 100 | 20.0 / 20.0 | 0.50 / 0.50 | 500 | 0 |"
        in page
    )
    assert "| ours / theirs | 1 | 2.00 | 1.00 | 0.50 | 0.50 | 1.00 |" in page
    assert "restricted" not in page
    assert "Other processes took at most 2.1% of the CPU" in page
    assert "Versions: ours (ours 1.0), theirs (theirs 1.0)." in page


def test_only_smooth_requests_count_as_smooth() -> None:
    document = comparison()
    # Ours have one gap above the limit in 1, 3 and 2 seconds.
    document["runs"][:3] = [
        old | run(0.15, old["summary"]["wall_s"], 500) for old in document["runs"][:3]
    ]
    assert "| 100 / 100 | 150 / 150 | 0.00 / 1.00 |" in comparison_section(document)


def test_servers_that_ran_together_are_compared_repeat_by_repeat() -> None:
    document = comparison() | {"together": True}
    # The machine was slow in the last repeat, for one of them more.
    document["runs"][-1] = document["runs"][-1] | run(0.02, 5.0, 500)
    page = comparison_section(document)
    assert "median of the repeats' ratios (range)" in page
    assert "| ours / theirs | 1 | 2.00 (2.00-2.50) | 1.00 (1.00-1.00) | 0.50 (0.50-0.50) |" in page


def test_a_rung_lengths_and_groups() -> None:
    document = comparison() | {
        "rung": "x86-64-v3",
        "prompt_words": [503, 2039],
        "output_tokens": 32,
        "num_requests": {"1": 2},
        "warmup": 1,
    }
    servers = [
        server | {"name": f"{server['name']} {group}"} | where
        for group, where in (("A", {"groups": ["A"], "models": ["x", "y"]}), ("B", {"group": "B"}))
        for server in document["servers"]
    ]
    runs = [
        measured
        | {"server": f"{measured['server']} {group}", "prompt_words": num_words}
        | {"requests": [row | {"prompt_tokens": num_words + 9} for row in measured["requests"]]}
        for group in ("A", "B")
        for num_words in (503, 2039)
        for measured in document["runs"]
    ]
    page = comparison_section(document | {"servers": servers, "runs": runs})
    assert ", restricted to x86-64-v3." in page
    assert (
        "Prompts of 503, 2039 random words, 32 output tokens; requests by the number of clients: "
        "2 at 1. Warm-up requests before each run: 1."
    ) in page
    assert (
        "| ours A |  | 512 | 1 | 3 (2-6) | 100 / 100 | 10.0 / 10.0 | 1.00 / 1.00 | 500 | 0 |"
        in page
    )
    assert "|  |  | 2048 | 1 | 3 (2-6) | 100 / 100 | 10.0 / 10.0 | 1.00 / 1.00 | 500 | 0 |" in page
    assert ratios_of(page) == [
        f"| ours {group} / theirs {group} | {tokens} | 1 | 2.00 | 1.00 | 0.50 | 0.50 | 1.00 |"
        for group in ("A", "B")
        for tokens in (512, 2048)
    ]


def test_a_server_may_be_compared_in_several_groups() -> None:
    document = comparison()
    base = document["servers"][1] | {"groups": ["A", "B"]}
    subjects = [document["servers"][0] | {"name": f"ours {g}", "groups": [g]} for g in ("A", "B")]
    runs = [run | {"server": f"ours {g}"} for g in ("A", "B") for run in document["runs"][:3]]
    both = {"servers": [*subjects, base], "runs": runs + document["runs"][3:]}
    assert ratios_of(comparison_section(document | both)) == [
        f"| ours {group} / theirs | 1 | 2.00 | 1.00 | 0.50 | 0.50 | 1.00 |" for group in ("A", "B")
    ]


def test_numbers_come_from_the_rows_not_from_the_summary() -> None:
    document = comparison()
    for measured in document["runs"]:
        measured["summary"]["output_tok_s"] = 999.0
    assert "999" not in comparison_section(document)


def test_where_a_result_comes_from() -> None:
    page = comparison_section(comparison() | {"partial": True, "uncommitted_changes": True})
    assert "Cut short" in page and "with uncommitted changes" in page


def test_results_are_written_between_their_marks(tmp_path: Path) -> None:
    save_result(comparison(), tmp_path / "one.json")
    save_result(comparison() | {"label": "Another"}, tmp_path / "two.json")
    places = [begin_mark(name, COMMAND) + END_MARK for name in ("two", "one")]
    page = render_page(f"# Title\n\n{places[0]}\nWhat follows.\n\n{places[1]}", tmp_path)
    assert page.startswith("# Title\n\n<!-- two:")
    order = ["# Title", "Another. 2026", "What follows.", "A comparison. 2026"]
    assert sorted(order, key=page.index) == order
    assert render_page(page, tmp_path) == page, "writing twice changes nothing"
    with pytest.raises(ValueError, match="no place for one: add these lines"):
        render_page(places[0], tmp_path)
    with pytest.raises(ValueError, match=r"does not hold: three\.json"):
        render_page(page + begin_mark("three", COMMAND) + END_MARK, tmp_path)


@pytest.mark.parametrize(
    ("form", "message"),
    [("other", r"x\.json is not one of"), (RUN_FORMAT, r"x\.json is a single run")],
)
def test_a_file_without_a_table_is_refused(tmp_path: Path, form: str, message: str) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"format": form}))
    with pytest.raises(ValueError, match=message):
        render_page("", tmp_path)
