import asyncio
from pathlib import Path
from typing import Any

import pytest

from loadtest.compare import NoiseLimit
from loadtest.image_compare import ImageComparison
from loadtest.image_plan import ImagePlan, ImageScenario, ImageServer, ScenarioKind
from loadtest.image_report import images_section
from loadtest.image_workload import ImageSettings, StepRange
from loadtest.interrupt import Interrupt
from loadtest.results import IMAGES_FORMAT
from tests.helpers.loadtest.comparisons import (
    PICTURES,
    assert_stopped,
    completed,
    quiet_session,
    server_at,
)
from tests.helpers.loadtest.documents import provenance

pytestmark = pytest.mark.slow

HEAD = provenance(IMAGES_FORMAT, "Pictures") | {"servers": []}
SETTINGS = ImageSettings(64, StepRange(2, 6))
DRAW = ImageScenario(
    *("draw", ScenarioKind.IMAGES, ("ours", "like ours", "theirs"), SETTINGS),
    clients=4,
    num_requests=8,
    warmup=2,
    trial_requests=3,
)
WAIT = ImageScenario(
    *("wait", ScenarioKind.BEHIND, ("theirs",), ImageSettings(64, StepRange(3, 3))),
    num_requests=2,
    warmup=1,
    num_long=3,
    long_steps=60,
    delay_s=0.01,
)
READ = ImageScenario(
    *("read", ScenarioKind.TEXT, ("theirs",), SETTINGS),
    clients=2,
    num_requests=3,
    warmup=1,
    text_model="t",
    lead_s=0.1,
)


@pytest.fixture
def server(unused_tcp_port_factory: Any) -> Any:
    def make(name: str, *variants: str, like: str | None = None) -> ImageServer:
        port = unused_tcp_port_factory()
        command = server_at(port, f"exec {PICTURES} {port} $VARIANT", name)
        return ImageServer(command, variants, like)

    return make


async def run(plan: ImagePlan, log_dir: Path, noise: NoiseLimit) -> dict[str, Any]:
    return await completed(ImageComparison(plan, quiet_session(log_dir), noise))


async def test_the_fastest_variant_is_compared(server: Any, tmp_path: Path) -> None:
    slow, fast = "20", "2000"
    servers = (
        server("ours", slow, fast),
        server("like ours", slow, fast, like="ours"),
        server("theirs", "1000"),
    )
    plan = ImagePlan(servers, (DRAW,), 2, "test")
    document = await run(plan, tmp_path, NoiseLimit(max_others=1.0))
    assert document["partial"] is False
    trials = [
        (t["server"], t["variant"], len(t["phases"]["images"]["requests"]))
        for t in document["trials"]
    ]
    assert trials == [("ours", slow, 3), ("ours", fast, 3)]
    keys = [(r["repeat"], r["server"], r["variant"]) for r in document["runs"]]
    assert keys == [
        *((0, "ours", fast), (0, "like ours", fast), (0, "theirs", "1000")),
        *((1, "like ours", fast), (1, "theirs", "1000"), (1, "ours", fast)),
    ]
    seeds = {(r["repeat"], r["phases"]["images"]["workload"]["seed"]) for r in document["runs"]}
    assert len(seeds) == 2, "all servers get the same pictures in the same repeat"
    for measured in document["runs"]:
        phase = measured["phases"]["images"]
        assert phase["summary"]["num_ok"] == 8
        assert phase["summary"]["max_in_flight"] <= 4
        assert phase["memory"]["pss_mib"] > 5
    assert "| ours | `2000` |" in images_section(document | HEAD)


async def test_short_behind_long_and_text_beside_pictures(server: Any, tmp_path: Path) -> None:
    plan = ImagePlan((server("theirs", "200"),), (WAIT, READ), 1, "test")
    document = await run(plan, tmp_path, NoiseLimit(max_others=1.0))
    wait, read = document["runs"]
    assert list(wait["phases"]) == ["solo", "behind 1", "behind 2"]
    roles = [row["role"] for row in wait["phases"]["behind 2"]["requests"]]
    assert roles == ["long"] * 3 + ["short"]
    assert all("error" not in row for p in wait["phases"].values() for row in p["requests"])
    assert list(read["phases"]) == ["alone", "beside"]
    beside = read["phases"]["beside"]
    assert beside["summary"]["output_tokens"] == 3 * 64
    assert "partial" not in beside
    assert "images" not in read["phases"]["alone"]
    assert isinstance(beside["images"]["requests"], list)
    page = images_section(document | HEAD)
    assert "**wait**" in page and "**read**" in page


async def test_noisy_runs_are_repeated(server: Any, tmp_path: Path) -> None:
    plan = ImagePlan((server("theirs", "2000"),), (WAIT,), 1, "test")
    document = await run(plan, tmp_path, NoiseLimit(max_others=-1.0, max_attempts=2))
    assert len(document["discarded"]) == 1
    assert [measured["quiet"] for measured in document["runs"]] == [False]


async def test_an_interrupt_stops_the_server(server: Any, tmp_path: Path) -> None:
    theirs = server("theirs", "50")
    long = ImagePlan((theirs,), (WAIT,), 1, "test")
    said = asyncio.Event()
    session = quiet_session(tmp_path, say=lambda line: said.set() if "serving" in line else None)
    measured = ImageComparison(long, session, NoiseLimit(max_others=1.0))

    async def work() -> None:
        async with Interrupt() as interrupt:
            running.append(interrupt)
            await measured.run(interrupt)

    running: list[Interrupt] = []
    task = asyncio.create_task(work())
    await asyncio.wait_for(said.wait(), 30)
    await asyncio.sleep(0.3)
    running[0].fire()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert measured.document["partial"] is True
    await assert_stopped(theirs.command)


async def test_a_server_that_ends_early(server: Any, tmp_path: Path) -> None:
    ended = ImageServer(server_at(1, "echo no such model; exit 3", "theirs"))
    with pytest.raises(RuntimeError, match=r"ended with status 3:\nno such model"):
        await run(ImagePlan((ended,), (WAIT,), 1, "t"), tmp_path, NoiseLimit())
