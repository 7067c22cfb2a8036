"""What is planned from headers is what a worker's process takes."""

import re
import time
from pathlib import Path

import httpx
import pytest

from engine.contract.orders import PlanningOrder
from engine.contract.settings import EngineConfig
from engine.planning.planner import make_plan
from tests.helpers.served import Server

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
CACHE = Path("~/.cache/tandem").expanduser()
POOL_GIB = 0.03
"""All of it is committed ahead."""
TEXT = "smollm2-135m-instruct"
MIB = 1 << 20


def worker_bytes(pid: int) -> int:
    """PSS, but the pages of mapped files whole: as of a worker that shares its libraries with no
    other process. Others run torch, too, while tests do."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.M)}
    return 1024 * (kib["Pss_Anon"] + kib["Pss_Shmem"] + kib["Rss"] - kib["Anonymous"])


def settled_bytes(pid: int) -> int:
    """Once memory is not being committed any more, which happens in pauses between steps."""
    readings = [0, 0, 0, 0, worker_bytes(pid)]
    while max(readings) - min(readings) > MIB:
        time.sleep(0.5)
        readings = [*readings[1:], worker_bytes(pid)]
    return readings[-1]


def planned(model: str, quantization: str | None, dtype: str = "bfloat16") -> int:
    config = EngineConfig(device="cpu", dtype=dtype, kv_cache_memory_gib=POOL_GIB)
    order = PlanningOrder(
        model=model,
        config=config,
        context=16 if quantization else None,
        cache_dir=CACHE,
        offline=False,
    )
    rows = make_plan(order, lambda message: None)["rows"]
    row = next(r for r in rows if r["quantization"] == (quantization or "none"))
    pool = int(POOL_GIB * (1 << 30)) if quantization else 0
    return row["total_bytes"] - row["kv_bytes"] + pool


@pytest.mark.parametrize("quantization", ["none", "gguf", "int8", None])
def test_a_worker_takes_what_was_planned(quantization, start_server):
    model = TEXT if quantization else "tandem-shapes"
    knobs = ["--quantization", quantization, "--dtype", "bfloat16"] if quantization else []
    pool = ("--kv-cache-memory-gib", str(POOL_GIB))
    server = start_server("--model", model, "--device", "cpu", *pool, *knobs)
    ask(server, is_text=quantization is not None)
    [pid] = server.worker_pids()
    measured = settled_bytes(pid)
    wanted = planned(model, quantization)
    assert measured == pytest.approx(wanted, rel=0.1), (measured / MIB, wanted / MIB)


def ask(server: Server, *, is_text: bool) -> None:
    """Ask for a long prompt's answer, or for a picture."""
    if is_text:
        body = {"prompt": "The quick brown fox. " * 150, "max_tokens": 8, "model": TEXT}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    else:
        body = {"prompt": "a red circle", "model": "tandem-shapes"}
        answer = httpx.post(f"{server.url}/v1/images/generations", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
