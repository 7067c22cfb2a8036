import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.metrics import Slo, summarise
from loadtest.record import RequestRecord
from loadtest.report import render_page
from loadtest.results import COMPARISON_FORMAT, RUN_FORMAT, STARTS_FORMAT, save_result

MACHINE = {
    "cpu": "Some CPU",
    "cpu_family_model": "25/17",
    "cpu_flags": "avx2",
    "cores": 2,
    "memory_gib": 23.4,
    "system": "Linux 6",
    "python": "3.11.7",
}
CPU = {"watched": 0.9, "loadtest": 0.006, "others": 0.021, "steal": 0.001}


def provenance(form: str, label: str, day: int = 1) -> dict[str, Any]:
    return {
        "format": form,
        "label": label,
        "command": "python -m loadtest x",
        "started_at": f"2026-01-{day:02}T00:00:00Z",
        "commit": "0123456789abcdef",
        "uncommitted_changes": False,
        "machine": MACHINE,
    }


def run(gap_s: float, wall_s: float, memory_mib: float) -> dict[str, Any]:
    records = [
        RequestRecord(i, 3, text_s=[0.1, 0.1 + gap_s, 0.1 + 2 * gap_s], end_s=1, output_tokens=3)
        for i in range(2)
    ]
    return {
        "workload": {"name": "peers", "concurrency": 1},
        "partial": False,
        "summary": summarise(records, wall_s, 2, Slo.parse("ttft=100")),
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


def test_a_comparison_becomes_tables(tmp_path: Path) -> None:
    save_result(comparison(), tmp_path / "a.json")
    page = render_page(tmp_path)
    assert "## A comparison\n\n2026-01-01, commit 0123456789ab, 2 cores of Some CPU" in page
    # 6 tokens in 1, 3 and 2 seconds: 6, 2 and 3 tok/s.
    assert "| ours | 3.0 | 1 | 3 (2-6) | 100 / 100 | 10.0 / 10.0 | 500 | 0 |" in page
    assert "| theirs | 60.0 | 1 | 2 (1-3) † | 100 / 100 | 20.0 / 20.0 | 500 | 0 |" in page
    assert "| theirs | 1 | 2.00 | 1.00 | 0.50 | 0.50 | 1.00 |" in page
    assert "forced" not in page.split("## A comparison")[1]
    # 2 requests in 1, 3 and 2 seconds, all of whose gaps are 10 ms; theirs take twice as long.
    assert "| ours | 1 | 1.0 | 1.00 | 1.00 | 1.00 | 1.00 |" in page
    assert "| theirs | 1 | 1.0 | 0.50 | 0.50 | 0.50 | 0.50 |" in page
    assert "others took at most 2.1% of the CPU" in page
    assert "theirs (theirs 1.0):\n\n```sh\nexec theirs\n```" in page


def test_servers_that_ran_together_are_compared_repeat_by_repeat(tmp_path: Path) -> None:
    document = comparison() | {"together": True}
    # The machine was slow in the last repeat, for one of them more.
    document["runs"][-1] = document["runs"][-1] | run(0.02, 5.0, 500)
    save_result(document, tmp_path / "a.json")
    page = render_page(tmp_path)
    assert "all ran at once" in page
    assert "| theirs | 1 | 2.00 (2.00-2.50) | 1.00 (1.00-1.00) | 0.50 (0.50-0.50) |" in page


def test_a_rung_lengths_and_groups(tmp_path: Path) -> None:
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
    save_result(document | {"servers": servers, "runs": runs}, tmp_path / "a.json")
    page = render_page(tmp_path)
    assert "## A comparison, forced to x86-64-v3\n" in page
    assert (
        "Prompts of 503, 2039 random words, 32 output tokens; requests by the number of clients: "
        "2 at 1. Warm-up requests of this kind before each run: 1."
    ) in page
    assert "| ours A |  | 512 | 1 | 3 (2-6) | 100 / 100 | 10.0 / 10.0 | 500 | 0 |" in page
    assert "|  |  | 2048 | 1 | 3 (2-6) | 100 / 100 | 10.0 / 10.0 | 500 | 0 |" in page
    assert "ours A (ours 1.0), asked for `x`, `y` in turn:\n\n```sh" in page
    assert "| ours B | 512 | 1 | 1.0 | 1.00 | 1.00 | 1.00 | 1.00 |" in page
    for group in ("A", "B"):
        table = page.split(f"ours {group} against the others")[1].split("\n\n")[1]
        assert table.splitlines()[2:] == [
            f"| theirs {group} | 512 | 1 | 2.00 | 1.00 | 0.50 | 0.50 | 1.00 |",
            f"| theirs {group} | 2048 | 1 | 2.00 | 1.00 | 0.50 | 0.50 | 1.00 |",
        ]


def test_a_server_may_be_compared_in_several_groups(tmp_path: Path) -> None:
    document = comparison()
    base = document["servers"][1] | {"groups": ["A", "B"]}
    subjects = [document["servers"][0] | {"name": f"ours {g}", "groups": [g]} for g in ("A", "B")]
    runs = [run | {"server": f"ours {g}"} for g in ("A", "B") for run in document["runs"][:3]]
    save_result(
        document | {"servers": [*subjects, base], "runs": runs + document["runs"][3:]},
        tmp_path / "a.json",
    )
    page = render_page(tmp_path)
    for group in ("A", "B"):
        table = page.split(f"ours {group} against the others")[1].split("\n\n")[1]
        assert table.splitlines()[2:] == ["| theirs | 1 | 2.00 | 1.00 | 0.50 | 0.50 | 1.00 |"]


def test_numbers_come_from_the_rows_not_from_the_summary(tmp_path: Path) -> None:
    document = comparison()
    for measured in document["runs"]:
        measured["summary"]["output_tok_s"] = 999.0
    save_result(document, tmp_path / "a.json")
    assert "999" not in render_page(tmp_path)


def test_newest_first_and_other_formats(tmp_path: Path) -> None:
    starts = {
        **provenance(STARTS_FORMAT, "Starts", day=3),
        "servers": comparison()["servers"],
        "starts": [
            {"server": "ours", "first_answer_s": 0.5, "ready_s": ready_s, "stop_s": 0.1}
            for ready_s in (3.0, 2.0, 9.0)
        ],
    }
    save_result(starts, tmp_path / "a.json")
    save_result(comparison() | {"partial": True}, tmp_path / "b.json")
    single = provenance(RUN_FORMAT, "Trace", day=2) | run(0.01, 1.5, 700)
    save_result(single | {"uncommitted_changes": True}, tmp_path / "c.json")
    page = render_page(tmp_path)
    assert page.index("## Starts") < page.index("## Trace") < page.index("## A comparison")
    assert "| ours | 3 | 0.50 (0.50-0.50) | 3.00 (2.00-9.00) | 0.10 (0.10-0.10) |" in page
    assert "| peers | 1 | 2 / 0 | 4.0 | 100 / 100 / 100 | 10 / 10 / 10 | 1000 / 1000 / 1000" in page
    assert "Goodput (ttft at most 100 ms): 1.33 requests/s, 100.0% of all." in page
    assert "within 50 ms: 1.33, 100 ms: 1.33, 200 ms: 1.33." in page
    assert "with uncommitted changes" in page
    assert "Cut short" in page


def test_without_results(tmp_path: Path) -> None:
    assert "No results have been committed yet." in render_page(tmp_path)
    (tmp_path / "x.json").write_text(json.dumps({"format": "other"}))
    with pytest.raises(ValueError, match=r"x\.json"):
        render_page(tmp_path)
