"""Loads adapters while texts stream, and measures the loads and the gaps in the streams."""

import asyncio
import json
import random
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from loadtest.client import CompletionClient, Target, error_text
from loadtest.drive import warm_up
from loadtest.exchange import Connector, Origin
from loadtest.interrupt import Interrupt
from loadtest.launch import ServerCommand, launched
from loadtest.noise import CpuTimes, cpu_shares
from loadtest.plan import check_keys, expand, plan_variables, server_command
from loadtest.plan_file import load_yaml
from loadtest.prompts import story_prompt
from loadtest.record import RequestRecord
from loadtest.session import Session
from loadtest.workload import PlannedRequest

_PLAN_KEYS = {"label", "rung", "variables", "repeats", "server", "folder", "adapters", "clients"}
_PLAN_KEYS |= {"max_tokens", "lead_s", "pause_s"}
_REQUIRED_KEYS = {"server", "folder", "adapters"}
_BEFORE_S = 0.5
"""Seconds before the first load that count: prompts were being read before that."""
_HEADERS = {"Content-Type": "application/json", "Connection": "close"}


@dataclass(frozen=True, slots=True)
class HotLoadPlan:
    """What to measure.

    Once `clients` texts of the base model, of at most `max_tokens`, have streamed for `lead_s`,
    adapters `folder`/name are loaded one by one, `pause_s` apart. Then all of them are unloaded."""

    server: ServerCommand
    folder: str
    adapters: tuple[str, ...]
    label: str
    rung: str
    clients: tuple[int, ...] = (1, 8)
    repeats: int = 3
    max_tokens: int = 2000
    lead_s: float = 1.0
    pause_s: float = 0.3


def load_hot_load_plan(path: Path, overrides: dict[str, str] | None = None) -> HotLoadPlan:
    """Read a plan; variables are those of `loadtest.plan.load_plan`. Raises ValueError."""
    document = load_yaml(path)
    check_keys("the plan", document, _PLAN_KEYS, _REQUIRED_KEYS)
    variables = plan_variables(document, overrides)
    others = {
        key: document[key]
        for key in ("repeats", "max_tokens", "lead_s", "pause_s")
        if key in document
    }
    if "clients" in document:
        others["clients"] = tuple(document["clients"])
    return HotLoadPlan(
        server=server_command("the server", document["server"], variables),
        folder=expand(document["folder"], variables),
        adapters=tuple(document["adapters"]),
        label=expand(document.get("label", path.stem), variables),
        rung=expand(document.get("rung", "native"), variables),
        **others,
    )


async def measure_hot_loads(
    plan: HotLoadPlan, session: Session, interrupt: Interrupt
) -> list[dict[str, Any]]:
    """Run the plan; returns one entry per repeat and number of clients.

    Raises RuntimeError when an adapter is refused or a stream ends too early, CancelledError after
    an interrupt.
    """
    runs = []
    for repeat in range(plan.repeats):
        async with launched(plan.server, plan.server.log_path(session.log_dir)) as launch:
            for clients in plan.clients:
                before = CpuTimes.read([launch.pid])
                run = await _run(plan, clients, random.Random(f"{session.seed} {repeat} {clients}"))
                if interrupt.requested:
                    raise asyncio.CancelledError
                cpu = cpu_shares(before, CpuTimes.read([launch.pid]))
                runs.append({"repeat": repeat, "clients": clients, "cpu": cpu} | run)
                longest = max(load["end_s"] - load["begin_s"] for load in run["loads"])
                session.say(f"{clients} streams: the longest load took {longest * 1000:.0f} ms")
    return runs


async def _run(plan: HotLoadPlan, clients: int, rng: random.Random) -> dict[str, Any]:
    client = CompletionClient(Target(plan.server.url, plan.server.model))
    # Work that a server does for its first texts, such as recording steps, must not count.
    await warm_up(client, 2 * clients, clients, rng.randrange(2**40))
    started = time.perf_counter()
    orders = _Orders(plan.server.url, started)
    records, tasks = [], []
    for index in range(clients):
        planned = PlannedRequest(index, story_prompt(rng.randrange(2**40), 20), plan.max_tokens)
        records.append(client.new_record(planned))
        sending = client.send(client.encode(planned), records[-1], started)
        tasks.append(asyncio.create_task(sending))
    try:
        loads = []
        await asyncio.sleep(plan.lead_s)  # all prompts have been read by then
        for name in plan.adapters:
            path = f"{plan.folder}/{name}"
            loads.append(await orders.post("load", {"lora_name": name, "lora_path": path}))
            await asyncio.sleep(plan.pause_s)
        for record, task in zip(records, tasks, strict=True):
            if task.done():
                reason = record.error or f"it has only {plan.max_tokens} tokens"
                raise RuntimeError(f"a stream ended before all adapters were loaded: {reason}")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for name in plan.adapters:
        await orders.post("unload", {"lora_name": name})
    return {"loads": loads, "requests": [record.to_row() for record in records]}


class _Orders:
    """A client of vLLM's two routes for loading and unloading adapters."""

    def __init__(self, url: str, started: float) -> None:
        self._connector = Connector(Origin.parse(url))
        self._started = started

    async def post(self, verb: str, body: dict[str, str]) -> dict[str, Any]:
        """Send an order. Returns when it was sent and answered, in seconds.

        Raises RuntimeError if it is refused.
        """
        answer = bytearray()
        path = f"/{verb}_lora_adapter"
        request = self._connector.origin.request("POST", path, _HEADERS, json.dumps(body).encode())
        begin = time.perf_counter()
        status = await self._connector.send(request, lambda status, piece, at: answer.extend(piece))
        end = time.perf_counter()
        if status != 200:
            raise RuntimeError(f"{verb} {body['lora_name']}: {error_text(bytes(answer))}")
        times = {"begin_s": begin - self._started, "end_s": end - self._started}
        return {"name": body["lora_name"]} | {key: round(at, 5) for key, at in times.items()}


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps between neighbouring chunks of a stream, in ms, over all streams of a run."""

    during: list[float]
    """Gaps that overlap a load."""
    others: list[float]

    @classmethod
    def of(cls, run: dict[str, Any]) -> "Gaps":
        """The gaps of a run, computed from its rows."""
        windows = [(load["begin_s"], load["end_s"]) for load in run["loads"]]
        found = cls([], [])
        for record in map(RequestRecord.from_row, run["requests"]):
            times = [record.sent_s + at for at in record.text_s]
            for begin, end in pairwise(times):
                if end < windows[0][0] - _BEFORE_S:
                    continue
                shared = any(begin < last and first < end for first, last in windows)
                (found.during if shared else found.others).append((end - begin) * 1000)
        return found
