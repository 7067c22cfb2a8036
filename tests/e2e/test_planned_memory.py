"""What is planned from headers is what a worker's process takes."""

import random
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.contract.orders import PlanningOrder
from engine.contract.settings import EngineConfig
from engine.planning.planner import make_plan
from tests.helpers.models.tiny_wrappers import make_wrapper
from tests.helpers.served import Server
from tests.helpers.server.picture_server import data_url, encoded, noise

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


def planned(model: str, quantization: str | None, **knobs: Any) -> int:
    config = EngineConfig(device="cpu", dtype="bfloat16", kv_cache_memory_gib=POOL_GIB, **knobs)
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


NUM_TEXTS = 8
"""Each has two slots for recurrent states."""
SIZES = {"hidden_size": 768, "max_position_embeddings": 4096, "initializer_range": 0.02}


@pytest.mark.parametrize("kind", ["hybrid", "mixture", "pictures"])
def test_workers_of_other_kinds_take_what_was_planned(kind, start_server, request, tmp_path):
    """Models whose weights and states take about 200 MiB."""
    if kind == "hybrid":
        make = request.getfixturevalue("tiny_qwen3_5")
        heads = {"linear_num_value_heads": 16, "linear_key_head_dim": 128}
        layers = {"num_hidden_layers": 8, "intermediate_size": 2048, "layer_types": None}
        model = make(**SIZES, **heads, **layers, linear_value_head_dim=128, dtype="bfloat16")
    elif kind == "mixture":
        make = request.getfixturevalue("tiny_qwen3_moe")
        model = make(**SIZES, num_experts=24, moe_intermediate_size=640, dtype="bfloat16")
    else:
        text = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 6}
        vision = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8}
        model = make_wrapper(tmp_path, "smolvlm", text=text, vision=vision)
    knobs = ["--quantization", "none", "--dtype", "bfloat16", "--max-num-seqs", str(NUM_TEXTS)]
    pool = ("--kv-cache-memory-gib", str(POOL_GIB))
    server = start_server("--model", f"m={model}", "--device", "cpu", *pool, *knobs)
    content = [{"type": "text", "text": "What is it? " * 20}]
    if kind == "pictures":
        url = data_url(encoded(noise(150, 150)))
        content.append({"type": "image_url", "image_url": {"url": url}})
    with ThreadPoolExecutor(NUM_TEXTS) as clients:
        list(clients.map(lambda number: chat(server, number, content), range(2 * NUM_TEXTS)))
    [pid] = server.worker_pids()
    measured, wanted = settled_bytes(pid), planned(str(model), "none", max_num_seqs=NUM_TEXTS)
    assert measured == pytest.approx(wanted, rel=0.15), (measured / MIB, wanted / MIB)


def chat(server: Server, number: int, content: list[dict[str, Any]]) -> None:
    own = {"type": "text", "text": f"{number} {random.random()}"}
    messages = [{"role": "user", "content": [own, *content]}]
    body = {"model": "m", "messages": messages, "max_tokens": 40, "ignore_eos": True}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
