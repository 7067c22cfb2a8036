"""What decoding features cost: the plan, the runs and the section of the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from loadtest.decoding import DecodingComparison
from loadtest.decoding_plan import DecodingCase, DecodingPlan, load_decoding_plan
from loadtest.decoding_report import decoding_section
from loadtest.results import DECODING_FORMAT
from server.protocol.completions import CompletionRequest
from tests.helpers.loadtest.comparisons import (
    WORDS,
    assert_stopped,
    completed,
    interrupted,
    quiet_session,
    server_at,
)
from tests.helpers.loadtest.documents import CPU, provenance

PLAN = Path(__file__).parents[2] / "loadtest" / "scenarios" / "decoding.yaml"


def test_every_case_of_the_committed_plan_is_a_request_that_tandem_takes() -> None:
    plan = load_decoding_plan(PLAN)
    for case in plan.cases:
        request = CompletionRequest.model_validate({"prompt": "a", "ignore_eos": True} | case.body)
        assert request.ignored_fields() == []
    assert {case.against for case in plan.cases} > {"plain sampling", "greedy, copying", None}
    assert {case.server for case in plan.cases} == {server.name for server in plan.servers}
    only = plan.only(["prompt lookup, copying"])
    assert [case.name for case in only.cases] == ["greedy, copying", "prompt lookup, copying"]
    assert [server.name for server in only.servers] == ["plain", "prompt lookup"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("{name: a, tusk: copy}", "a case has unknown keys: tusk"),
        ("{task: copy}", "a case lacks: name"),
        ("{name: a, task: sing}", "no task is called 'sing'"),
        ("{name: a, server: t}", "no server is called 't'"),
        ("{name: a, against: b}", "no case is called 'b'"),
        ("{name: a}, {name: a}", "two in the plan have the same name: 'a'"),
    ],
)
def test_a_wrong_plan_is_refused(tmp_path: Path, case: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(f"servers: [{{name: s, command: c, url: u, model: m}}]\ncases: [{case}]\n")
    with pytest.raises(ValueError, match=message):
        load_decoding_plan(path)


def _plan(*ports: int) -> DecodingPlan:
    servers = [
        server_at(port, f"exec {WORDS} {port}", name)
        for name, port in zip(("plain", "guessing"), ports, strict=False)
    ]
    return DecodingPlan(
        servers=tuple(servers),
        cases=(
            DecodingCase("one", "plain"),
            DecodingCase("other", "plain", body={"n": 1}, against="one"),
            DecodingCase("again", servers[-1].name, "again", against="one"),
            DecodingCase("copy", servers[-1].name, "copy"),
        ),
        num_requests={1: 1, 2: 3},
        output_tokens=5,
        warmup_tokens=2,
        repeats=2,
        label="test",
    )


def _comparison(plan: DecodingPlan, folder: Path, **hooks: Any) -> DecodingComparison:
    return DecodingComparison(plan, quiet_session(folder, **hooks))


def test_cases_of_a_task_get_the_same_prompts(tmp_path: Path) -> None:
    plan = _plan(1)
    comparison = _comparison(plan, tmp_path)
    one, other, again, copy = plan.cases

    def prompts(case: DecodingCase, repeat: int) -> list[str]:
        return [request.prompt for request in comparison._workload(case, repeat, 2).requests]

    assert prompts(one, 0) == prompts(other, 0)
    assert not {*prompts(one, 0)} & {*prompts(one, 1), *prompts(again, 0)}
    assert prompts(again, -1) == prompts(again, 0) == prompts(again, 1)
    for text in prompts(copy, 0):
        first, second, begun = text.split("\n\n")
        assert first == second and first.split()[:4] == begun.split()
    lengths = [comparison._workload(one, repeat, 1).requests[0].max_tokens for repeat in (-1, 0)]
    assert lengths == [2, 5]
    assert comparison._workload(again, -1, 1).requests[0].max_tokens == 5


@pytest.mark.slow
async def test_cases_are_measured_by_turns(tmp_path: Path, unused_tcp_port_factory: Any) -> None:
    plan = _plan(unused_tcp_port_factory(), unused_tcp_port_factory())
    document = await completed(_comparison(plan, tmp_path))
    assert document["partial"] is False
    assert document["cases"][1]["body"] == {"cache_salt": "other", "n": 1}
    runs = document["runs"]
    for block in range(4):
        some = runs[4 * block : 4 * block + 4]
        assert {run["case"] for run in some} == {"one", "other", "again", "copy"}
        assert {(run["repeat"], run["concurrency"]) for run in some} == {
            (block // 2, 1 + block % 2)
        }
    for run in runs:
        assert len(run["requests"]) == (1 if run["concurrency"] == 1 else 3)
        for row in run["requests"]:
            assert row["max_tokens"] == row["output_tokens"] == 5
            assert row["end_ms"] > 0 and "gaps_ms" not in row
    await assert_stopped(*plan.servers)


@pytest.mark.slow
async def test_an_interrupt_keeps_what_is_complete(
    tmp_path: Path, unused_tcp_port_factory: Any
) -> None:
    saved: list[int] = []
    plan = _plan(unused_tcp_port_factory(), unused_tcp_port_factory())
    await interrupted(
        lambda interrupt: _comparison(
            plan,
            tmp_path,
            say=lambda line: interrupt() if line.startswith("repeat 2") else None,
            save=lambda document: saved.append(len(document["runs"])),
        )
    )
    assert saved == [0, 8, 8]


def document() -> dict[str, Any]:
    runs = []
    for case, factor in (("plain", 1.0), ("dear", 2.0)):
        for repeat, ms in enumerate((100.0, 300.0, 200.0)):
            end_ms = ms * factor * (2.0 if case == "dear" and repeat == 1 else 1.0)
            rows: list[dict[str, Any]] = [
                {"i": i, "sent_s": 0.0, "max_tokens": 10, "end_ms": end_ms} for i in range(2)
            ]
            if repeat == 2:
                rows[1]["error"] = "HTTP 500"
            runs.append(
                {"case": case, "repeat": repeat, "concurrency": 1, "cpu": CPU, "requests": rows}
            )
    return {
        **provenance(DECODING_FORMAT, "What it costs"),
        "servers": [{"name": "s", "version": "1", "model": "m", "command": "exec s"}],
        "num_requests": {"1": 2, "16": 16},
        "output_tokens": 10,
        "warmup_tokens": 2,
        "repeats": 3,
        "cases": [
            {"name": "plain", "server": "s", "task": "story", "body": {}},
            {"name": "dear", "server": "s", "task": "story", "body": {"n": 4}, "against": "plain"},
        ],
        "partial": False,
        "runs": runs,
    }


def test_times_are_compared_within_their_repeat() -> None:
    page = decoding_section(document())
    assert "What it costs. 2026-01-01" in page
    assert "| plain | story |  | 20.00 | - | - | - | 1 |" in page
    assert "| dear | story | plain | 40.00 | 2.00 (2.00-4.00) | - | - | 1 |" in page
    assert "Other processes took 2.1% of the CPU in the median run" in page


def test_a_run_without_results_says_so() -> None:
    empty = json.loads(json.dumps(document() | {"runs": []}))
    assert "Nothing was measured." in decoding_section(empty)
