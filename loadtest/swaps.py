"""Asks a server that has more models than memory for all of them at random, and counts what was
lost, what differed, how long the first tokens took, and how often models were loaded."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from loadtest.client import error_text
from loadtest.exchange import Connector, ExchangeError, Origin
from loadtest.markdown import number, table
from loadtest.metrics import percentile
from loadtest.processes import MemoryWatch
from loadtest.prompts import story_prompt
from loadtest.sse import EventParser

_POLL_S = 0.1
_TIMEOUT_S = 300.0
_ORDERS_PER_MODEL = 4
_PATHS = {"text": "/completions", "embedding": "/embeddings", "image": "/images/generations"}
_HEADERS = {"Content-Type": "application/json", "Connection": "close"}


@dataclass(frozen=True, slots=True)
class Order:
    """A request that has one right answer."""

    model: str
    kind: Literal["text", "embedding", "image"]
    body: dict[str, Any]


@dataclass(slots=True)
class SwapRun:
    """What happened. A request is cold if its model was not loaded when it was sent."""

    requests: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    num_different: int = 0
    loads: Counter[str] = field(default_factory=Counter)
    cold_s: list[float] = field(default_factory=list)
    """Times to the first token of texts."""
    warm_s: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    def to_table(self) -> str:
        heads = ["requests", "lost", "different answers", "loads"]
        heads += ["cold first token s p50 / p99", "warm p50 / p99", "cold texts", "peak PSS MiB"]
        row = [self.requests.total(), len(self.lost), self.num_different, self.loads.total()]
        times = [
            " / ".join(number(percentile(sorted(some), q), 2) for q in (50, 99)) if some else "-"
            for some in (self.cold_s, self.warm_s)
        ]
        cells = [*map(str, row), *times, str(len(self.cold_s)), str(self.peak_bytes >> 20)]
        return table(heads, [cells], num_text_columns=0)


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
                case other:
                    raise ValueError(f"{other!r} is no kind; use text, embedding or image")
    return found


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

    async def measure(
        self, users: int, seconds: float, pids: Sequence[int], rng: random.Random
    ) -> SwapRun:
        """Ask for everything once, one after the other, and then at random for some time.

        Raises RuntimeError if a first answer does not come.
        """
        for index in range(len(self._orders)):
            self._right[index], _ = await self._ask(index)
            if self._right[index] is None:
                raise RuntimeError(f"{self._orders[index].model}: {self._run.lost[0]}")
        self._run = SwapRun()
        watching = asyncio.create_task(self._watch())
        watch, end = MemoryWatch(tuple(pids)), time.monotonic() + seconds
        async with watch.watching(0.5):
            seeds = [rng.randrange(2**40) for _ in range(users)]
            await asyncio.gather(*(self._user(random.Random(seed), end) for seed in seeds))
        watching.cancel()
        self._run.peak_bytes = watch.peak_bytes
        return self._run

    async def _user(self, rng: random.Random, end: float) -> None:
        """Ask one model for a while, then another, as people do."""
        while time.monotonic() < end:
            model = rng.choice(self._orders).model
            for _ in range(rng.randint(1, 4)):
                own = [i for i, order in enumerate(self._orders) if order.model == model]
                index, is_cold = rng.choice(own), model not in self._loaded
                answer, first_s = await self._ask(index)
                self._run.num_different += answer not in (None, self._right[index])
                if first_s is not None:
                    (self._run.cold_s if is_cold else self._run.warm_s).append(first_s)
                await asyncio.sleep(rng.expovariate(2.0))

    async def _ask(self, index: int) -> tuple[Any, float | None]:
        """The answer, or None if it was lost, and the time to a text's first token."""
        order, pieces = self._orders[index], list[tuple[bytes, float]]()
        body = json.dumps({"model": order.model, **order.body}).encode()
        request = self._connector.origin.request("POST", _PATHS[order.kind], _HEADERS, body)
        began = time.perf_counter()
        self._run.requests[order.model] += 1
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                status = await self._connector.send(
                    request, lambda _, piece, at: pieces.append((piece, at))
                )
            if status != 200:
                raise ExchangeError(f"{status}: {error_text(b''.join(p for p, _ in pieces))}")
            if order.kind == "text":
                return self._text(pieces, began)
            [one] = json.loads(b"".join(piece for piece, _ in pieces))["data"]
            return one.get("embedding") or one["b64_json"], None
        except (ExchangeError, TimeoutError, ValueError, KeyError) as error:
            self._run.lost.append(str(error) or type(error).__name__)
            return None, None

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
            self._loaded = loaded
            await asyncio.sleep(_POLL_S)

    async def _look(self) -> set[str]:
        pieces = list[bytes]()
        request = self._statuses.origin.request("GET", "/models", {"Connection": "close"}, b"")
        await self._statuses.send(request, lambda _, piece, at: pieces.append(piece))
        models = json.loads(b"".join(pieces))["data"]
        return {one["id"] for one in models if one["status"]["value"] == "loaded"}
