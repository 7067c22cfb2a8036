from pathlib import Path
from typing import Any

import pytest

from loadtest.hot_load_report import hot_loads_section
from loadtest.hot_loads import Gaps, HotLoadPlan, load_hot_load_plan, measure_hot_loads
from loadtest.interrupt import Interrupt
from loadtest.record import RequestRecord
from tests.helpers.loadtest.comparisons import WORDS, assert_stopped, quiet_session, server_at
from tests.helpers.loadtest.documents import provenance

SCENARIOS = Path(__file__).parents[2] / "loadtest" / "scenarios"


def plan(port: int, **fields: Any) -> HotLoadPlan:
    server = server_at(port, f"exec {WORDS} {port} --word 0.005")
    settings: dict[str, Any] = {"adapters": ("a", "b"), "repeats": 1} | fields
    settings = {"lead_s": 0.3, "pause_s": 0.05} | settings
    return HotLoadPlan(server, "/adapters", label="l", rung="native", **settings)


async def measured(plan: HotLoadPlan, log_dir: Path) -> list[dict[str, Any]]:
    async with Interrupt() as interrupt:
        return await measure_hot_loads(plan, quiet_session(log_dir), interrupt)


@pytest.mark.slow
async def test_loads_beside_streams(unused_tcp_port: int, tmp_path: Path) -> None:
    both = plan(unused_tcp_port, clients=(1, 3))
    runs = await measured(both, tmp_path)
    assert [run["clients"] for run in runs] == [1, 3]
    for run in runs:
        assert [load["name"] for load in run["loads"]] == ["a", "b"]
        assert len(run["requests"]) == run["clients"]
        assert all(row["error"] == "interrupted" for row in run["requests"])
        gaps = Gaps.of(run)
        assert gaps.others
        assert min(gaps.others) >= 0 and max(gaps.others) > 0, "several tokens may come at once"
    await assert_stopped(both.server)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"adapters": ("a", "missing")}, "load missing: no such adapter"),
        ({"max_tokens": 1}, "a stream ended before all adapters were loaded: it has only 1 tokens"),
    ],
)
async def test_what_cannot_be_measured(
    unused_tcp_port: int, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        await measured(plan(unused_tcp_port, clients=(1,), **fields), tmp_path)


def run(loads: list[tuple[float, float]], times_s: list[float], repeat: int = 0) -> dict[str, Any]:
    record = RequestRecord(0, 9, sent_s=times_s[0], text_s=[at - times_s[0] for at in times_s])
    names = ("begin_s", "end_s")
    return {
        "repeat": repeat,
        "clients": 1,
        "cpu": {"others": 0.01},
        "loads": [dict(zip(names, load, strict=True)) for load in loads],
        "requests": [record.to_row()],
    }


def test_gaps_belong_to_the_loads_that_they_share_time_with() -> None:
    one = run([(10.0, 10.1)], [9.0, 9.2, 9.98, 10.02, 10.12, 10.14])
    gaps = Gaps.of(one)
    assert gaps.others == pytest.approx([780, 20]), "9.0 to 9.2 is long before"
    assert gaps.during == pytest.approx([40, 100])


def test_a_table() -> None:
    runs = [
        run([(10, 10.09), (10.2, 10.25)], [9.99, 10.03, 10.1, 10.12, 10.23, 10.26, 10.27], repeat)
        for repeat in (0, 1)
    ]
    document = {
        **provenance("hot loads", "Loads"),
        "repeats": 2,
        "pause_s": 0.3,
        "adapters": ["a", "b"],
        "servers": [{"name": "words", "command": "exec words"}],
        "runs": runs,
    }
    section = hot_loads_section(document)
    assert "2 repeats. 2 adapters are loaded one after the other, 300 ms apart" in section
    # Gaps of 40, 70, 20, 110, 30 and 10 ms: the loads share the first two, and 110 and 30.
    assert "| 1 | 4 | 70 (50-90) | 15.0 / 20.0 | 20.0 | 90.0 | 110 |" in section


def test_the_projects_own_plan_loads() -> None:
    found = load_hot_load_plan(SCENARIOS / "hot-loads.yaml", {"ADAPTERS_DIR": "/x"})
    assert found.folder == "/x/all"
    assert (found.clients, found.repeats, len(found.adapters)) == ((1, 8), 3, 8)
