"""Asks servers that have more models than memory for all of them at random: what is lost, what
differs, how long first tokens take, how often models are loaded, and how much memory it takes."""

import asyncio
import base64
import io
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from loadtest.client import error_text
from loadtest.exchange import Connector, ExchangeError, Origin
from loadtest.interrupt import Interrupt
from loadtest.launch import ServerCommand, launched, text_probe
from loadtest.noise import CpuTimes, cpu_shares
from loadtest.plan import (
    check_keys,
    check_names,
    expand,
    plan_variables,
    server_command,
    some_servers,
)
from loadtest.plan_file import load_yaml
from loadtest.processes import MemoryWatch
from loadtest.prompts import story_prompt
from loadtest.session import Session
from loadtest.sse import EventParser

_PLAN_KEYS = {"label", "variables", "models", "users", "seconds", "budget_mib", "servers"}
_POLL_S = 0.1
_PSS_PAUSE_S, _PSS_SHARE = 0.5, 0.1
_TIMEOUT_S = 300.0
_ORDERS_PER_MODEL = 4
_PATHS = {
    "text": "/completions",
    "embedding": "/embeddings",
    "image": "/images/generations",
    "enlarge": "/images/upscale",
}
_HEADERS = {"Content-Type": "application/json", "Connection": "close"}


@dataclass(frozen=True, slots=True)
class SwapPlan:
    """What to measure. Models are NAME or NAME=KIND; the budget is only shown with the results."""

    servers: tuple[ServerCommand, ...]
    models: tuple[str, ...]
    label: str
    users: int = 3
    seconds: float = 600.0
    budget_mib: float | None = None

    def only(self, names: list[str]) -> "SwapPlan":
        """A copy with some of the servers. Raises ValueError for a name not in the plan."""
        return replace(self, servers=some_servers(self.servers, names))


def load_swap_plan(path: Path, overrides: dict[str, str] | None = None) -> SwapPlan:
    """Read a plan; variables are those of `loadtest.plan.load_plan`. Raises ValueError."""
    document = load_yaml(path)
    check_keys("the plan", document, _PLAN_KEYS, {"models", "servers"})
    variables = plan_variables(document, overrides)
    servers = tuple(server_command("a server", one, variables) for one in document["servers"])
    check_names(server.name for server in servers)
    return SwapPlan(
        servers,
        tuple(document["models"]),
        expand(document.get("label", path.stem), variables),
        **{key: document[key] for key in ("users", "seconds", "budget_mib") if key in document},
    )


@dataclass(frozen=True, slots=True)
class Order:
    """A request that has one right answer."""

    model: str
    kind: Literal["text", "embedding", "image", "enlarge"]
    body: dict[str, Any]


@dataclass(slots=True)
class SwapRun:
    """What happened to each request (see `Swapper._ask`) and to the models."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    loads: Counter[str] = field(default_factory=Counter)
    evictions: Counter[str] = field(default_factory=Counter)
    peak_mib: float = 0.0
    peak_models_mib: float = 0.0
    """Without the process that was launched."""

    def to_json(self) -> dict[str, Any]:
        return {
            "loads": dict(self.loads),
            "evictions": dict(self.evictions),
            "peak_pss_mib": round(self.peak_mib, 1),
            "peak_pss_models_mib": round(self.peak_models_mib, 1),
            "requests": self.rows,
        }


def orders(models: Sequence[str], rng: random.Random) -> list[Order]:
    """Some requests for each model, which is given as NAME or NAME=KIND.

    Raises:
        ValueError: there is no such kind.
    """
    found = []
    for named in models:
        name, _, kind = named.partition("=")
        for _ in range(_ORDERS_PER_MODEL):
            seed = rng.randrange(2**31)
            prompt = story_prompt(seed, 40)
            match kind or "text":
                case "text":
                    texts = {"max_tokens": 24, "temperature": 0, "stream": True}
                    found.append(Order(name, "text", {"prompt": prompt, **texts}))
                case "embedding":
                    found.append(Order(name, "embedding", {"input": prompt}))
                case "image":
                    body = {"prompt": "a red circle", "seed": seed, "steps": 4}
                    found.append(Order(name, "image", body))
                case "enlarge":
                    found.append(Order(name, "enlarge", {"image": _noise_picture(seed)}))
                case other:
                    known = ", ".join(_PATHS)
                    raise ValueError(f"{other!r} is no kind; there are: {known}")
    return found


def _noise_picture(seed: int) -> str:
    """A small picture that has one right enlargement, as clients send it in JSON."""
    side, file = 48, io.BytesIO()
    pixels = random.Random(seed).randbytes(3 * side * side)
    Image.frombytes("RGB", (side, side), pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def measure_swaps(plan: SwapPlan, session: Session, interrupt: Interrupt) -> None:
    """Run the plan's servers in turn, with the same orders and users; save an entry for each.

    Raises:
        RuntimeError: a first answer does not come.
        CancelledError: after an interrupt.
    """
    runs = list[dict[str, Any]]()
    for server in plan.servers:
        rng = random.Random(session.seed)
        some = orders(plan.models, rng)
        texts = dict.fromkeys(one.model for one in some if one.kind == "text")
        probes = [text_probe(server, model) for model in texts]
        log = server.log_path(session.log_dir)
        async with launched(server, log, probes=probes) as launch:
            swapper = Swapper(server.url, some)
            await swapper.learn()
            before = CpuTimes.read([launch.pid])
            run = await swapper.measure(plan.users, plan.seconds, launch.pid, rng)
            cpu = cpu_shares(before, CpuTimes.read([launch.pid]))
        if interrupt.requested:
            raise asyncio.CancelledError
        runs.append({"server": server.name, "cpu": cpu, **run.to_json()})
        session.save({"runs": runs})
        session.say(f"{server.name}: {len(run.rows)} requests, {run.loads.total()} loads")


class Swapper:
    """Asks one server. `url` is the API's base."""

    def __init__(self, url: str, some: Sequence[Order]) -> None:
        self._orders = some
        self._connector = Connector(Origin.parse(url))
        root = Origin.parse(url.removesuffix("/").removesuffix("/v1"))
        self._statuses = Connector(root)
        self._loaded: set[str] = set()
        self._right: dict[int, Any] = {}
        self._run = SwapRun()

    async def learn(self) -> None:
        """Ask for everything once, one after the other.

        Raises RuntimeError if an answer does not come.
        """
        for index, order in enumerate(self._orders):
            row, self._right[index] = await self._ask(index)
            if "lost" in row:
                raise RuntimeError(f"{order.model}: {row['lost']}")

    async def measure(
        self, users: int, seconds: float, pid: int | None, rng: random.Random
    ) -> SwapRun:
        """Ask at random for some time. `pid`: the server, whose memory is measured."""
        self._run, self._loaded = SwapRun(), await self._look()
        watch = asyncio.create_task(self._watch())
        memory = MemoryWatch(() if pid is None else (pid,))
        end, seeds = time.monotonic() + seconds, [rng.randrange(2**40) for _ in range(users)]
        try:
            async with memory.watching(_PSS_PAUSE_S, _PSS_SHARE):
                await asyncio.gather(*(self._user(random.Random(seed), end) for seed in seeds))
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        self._run.peak_mib = memory.peak_bytes / 2**20
        self._run.peak_models_mib = memory.peak_below_bytes / 2**20
        return self._run

    async def _user(self, rng: random.Random, end: float) -> None:
        """Ask one model for a while, then another, as people do."""
        while time.monotonic() < end:
            model = rng.choice(self._orders).model
            for _ in range(rng.randint(1, 4)):
                own = [i for i, order in enumerate(self._orders) if order.model == model]
                index = rng.choice(own)
                row, answer = await self._ask(index)
                if "lost" not in row and answer != self._right[index]:
                    row["differs"] = True
                self._run.rows.append(row)
                await asyncio.sleep(rng.expovariate(2.0))

    async def _ask(self, index: int) -> tuple[dict[str, Any], Any]:
        """The request's row, with the time to a text's first token, and the answer.

        A request is cold if its model was not loaded when it was sent.
        """
        order, pieces = self._orders[index], list[tuple[bytes, float]]()
        body = json.dumps({"model": order.model, **order.body}).encode()
        request = self._connector.origin.request("POST", _PATHS[order.kind], _HEADERS, body)
        row = {"model": order.model, "kind": order.kind, "cold": order.model not in self._loaded}
        answer, began = None, time.perf_counter()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status = await self._connector.send(
                    request, lambda _, piece, at: pieces.append((piece, at))
                )
            if status != 200:
                raise ExchangeError(f"{status}: {error_text(b''.join(p for p, _ in pieces))}")
            if order.kind == "text":
                answer, first_s = self._text(pieces, began)
                row["first_s"] = None if first_s is None else round(first_s, 4)
            else:
                [one] = json.loads(b"".join(piece for piece, _ in pieces))["data"]
                answer = one.get("embedding") or one["b64_json"]
        except (ExchangeError, TimeoutError, ValueError, KeyError) as error:
            row["lost"] = str(error) or type(error).__name__
        return row | {"end_s": round(time.perf_counter() - began, 4)}, answer

    @staticmethod
    def _text(pieces: list[tuple[bytes, float]], began: float) -> tuple[str, float | None]:
        events, text, first_s = EventParser(), "", None
        payload = b""
        for piece, at in pieces:
            for payload in events.feed(piece):
                if payload != b"[DONE]":
                    new = "".join(one["text"] for one in json.loads(payload)["choices"])
                    first_s = at - began if new and first_s is None else first_s
                    text += new
        if payload != b"[DONE]":
            raise ExchangeError("the stream ended too early")
        return text, first_s

    async def _watch(self) -> None:
        """Look which models are loaded, and count the changes."""
        while True:
            loaded = await self._look()
            self._run.loads.update(loaded - self._loaded)
            self._run.evictions.update(self._loaded - loaded)
            self._loaded = loaded
            await asyncio.sleep(_POLL_S)

    async def _look(self) -> set[str]:
        pieces = list[bytes]()
        request = self._statuses.origin.request("GET", "/models", {"Connection": "close"}, b"")
        await self._statuses.send(request, lambda _, piece, at: pieces.append(piece))
        models = json.loads(b"".join(pieces))["data"]
        return {one["id"] for one in models if one["status"]["value"] == "loaded"}
