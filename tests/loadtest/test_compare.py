from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loadtest.compare import Comparison, NoiseLimit
from loadtest.plan import ComparisonPlan
from loadtest.points import points, prompt_tokens
from tests.helpers.loadtest.comparisons import (
    WORDS,
    assert_stopped,
    completed,
    interrupted,
    quiet_session,
    server_at,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def plan(unused_tcp_port_factory: Any) -> ComparisonPlan:
    servers = [
        server_at(port := unused_tcp_port_factory(), f"exec {WORDS} {port}", name)
        for name in ("ours", "theirs")
    ]
    return ComparisonPlan(tuple(servers), (1, 2), 2, 1, "test")


def comparison(plan: ComparisonPlan, log_dir: Path, noise: NoiseLimit, **hooks: Any) -> Comparison:
    return Comparison(plan, quiet_session(log_dir, **hooks), noise, idle_s=0.0)


async def test_servers_take_turns(plan: ComparisonPlan, tmp_path: Path) -> None:
    document = await completed(comparison(plan, tmp_path, NoiseLimit(max_others=1.0)))
    assert document["partial"] is False
    keys = [(run["repeat"], run["server"], run["concurrency"]) for run in document["runs"]]
    assert keys == [
        *((0, "ours", 1), (0, "ours", 2), (0, "theirs", 1), (0, "theirs", 2)),
        *((1, "theirs", 1), (1, "theirs", 2), (1, "ours", 1), (1, "ours", 2)),
    ]
    seeds = {key: run["workload"]["seed"] for key, run in zip(keys, document["runs"], strict=True)}
    for repeat in (0, 1):
        for clients in (1, 2):
            assert seeds[repeat, "ours", clients] == seeds[repeat, "theirs", clients]
    assert len(set(seeds.values())) == 4
    for run in document["runs"]:
        assert run["quiet"]
        assert run["summary"]["num_ok"] == 12
        assert run["summary"]["output_tokens"] == 12 * 64
        assert run["memory"]["pss_mib"] > 5
        assert len(run["requests"]) == 12
    assert [start["server"] for start in document["starts"]] == ["ours", "theirs", "theirs", "ours"]
    assert all(start["stop_s"] is not None for start in document["starts"])


async def test_servers_that_run_together_are_asked_in_turn(
    plan: ComparisonPlan, tmp_path: Path
) -> None:
    together = plan.having(together=True)
    document = await completed(comparison(together, tmp_path, NoiseLimit(max_others=1.0)))
    assert document["partial"] is False and document["together"] is True
    keys = [(run["repeat"], run["concurrency"], run["server"]) for run in document["runs"]]
    assert keys == [
        *((0, 1, "ours"), (0, 1, "theirs"), (0, 2, "ours"), (0, 2, "theirs")),
        *((1, 1, "theirs"), (1, 1, "ours"), (1, 2, "theirs"), (1, 2, "ours")),
    ]
    assert sorted(start["server"] for start in document["starts"]) == ["ours", "theirs"]


async def test_other_lengths_and_counts(plan: ComparisonPlan, tmp_path: Path) -> None:
    lengths = replace(plan, prompt_words=(20, 40), output_tokens=7, num_requests={2: 3}, repeats=1)
    ours = lengths.only(["ours"])
    document = await completed(comparison(ours, tmp_path, NoiseLimit(max_others=1.0)))
    runs = document["runs"]
    keys = [(run["prompt_words"], run["concurrency"]) for run in runs]
    assert keys == [(20, 1), (20, 2), (40, 1), (40, 2)]
    assert [len(run["requests"]) for run in runs] == [12, 3, 12, 3]
    assert {row["output_tokens"] for run in runs for row in run["requests"]} == {7}
    found = {
        point.load: point.median_of(prompt_tokens)
        for point in points({"servers": [{"name": "ours"}], **document})
    }
    assert found[40, 1] == found[40, 2]
    assert (found[40, 1] or 0) - (found[20, 1] or 0) == 20


async def test_noisy_runs_are_repeated_with_new_prompts(
    plan: ComparisonPlan, tmp_path: Path
) -> None:
    one = plan.only(["ours"]).having(repeats=1, concurrencies=(1,))
    noisy = NoiseLimit(max_others=-1.0, max_attempts=3)
    document = await completed(comparison(one, tmp_path, noisy))
    assert len(document["discarded"]) == 2
    (run,) = document["runs"]
    assert run["quiet"] is False
    quiet = await completed(comparison(one, tmp_path, NoiseLimit(max_others=1.0)))
    assert quiet["runs"][0]["workload"]["seed"] != run["workload"]["seed"]


async def test_an_interrupt_keeps_complete_points(plan: ComparisonPlan, tmp_path: Path) -> None:
    saved: list[int] = []
    await interrupted(
        lambda interrupt: comparison(
            plan,
            tmp_path,
            NoiseLimit(max_others=1.0),
            say=lambda line: interrupt() if "c=2" in line else None,
            save=lambda document: saved.append(len(document["runs"])),
        )
    )
    assert saved == [2]
    await assert_stopped(*plan.servers)
