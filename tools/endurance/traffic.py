"""Draws what each user of a soak does next. The same seed gives the same errands."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tools.endurance.asking import MANNERS, Manner
from tools.endurance.order import NUM_VARIANTS, Catalogue, Order

_MANNER_WEIGHTS = (40, 35, 5, 12, 8)
_KIND_WEIGHTS = {
    "text": 20,
    "chat": 14,
    "tools": 6,
    "structure": 8,
    "adapter": 8,
    "embedding": 6,
    "picture": 8,
    "edit": 3,
    "chain": 2,
}
_BAD_WEIGHT = 8
_CHANGE_SHARE = 0.03
"""How many of the errands load, unload, put to sleep or wake something."""


@dataclass(frozen=True, slots=True)
class Change:
    """An order to the operator's routes, with the statuses that are right."""

    path: str
    body: dict[str, Any]
    statuses: tuple[int, ...] = (200,)


@dataclass(frozen=True, slots=True)
class Request:
    """A client's request: what it asks, and how it behaves."""

    order: Order
    manner: Manner
    pieces: int


@dataclass(frozen=True, slots=True)
class Errand:
    """Steps that a user takes one after the other. Errands with the same `lock` never overlap."""

    name: str
    steps: tuple[Request | Change, ...]
    lock: str | None = None
    pause_s: float = 0.0


def errands(catalogue: Catalogue, seed: str) -> Iterator[Errand]:
    """One user's errands, without end."""
    rng = random.Random(seed)
    while True:
        if rng.random() < _CHANGE_SHARE:
            yield _change(catalogue, rng)
        else:
            request = draw_request(catalogue, rng)
            yield Errand(request.order.kind, (request,), pause_s=rng.expovariate(5.0))


def draw_request(catalogue: Catalogue, rng: random.Random) -> Request:
    kinds = [*catalogue.kinds, "bad"]
    weights = [*(_KIND_WEIGHTS[kind] for kind in catalogue.kinds), _BAD_WEIGHT]
    [kind] = rng.choices(kinds, weights)
    if kind == "bad":
        return Request(catalogue.order(kind, rng.randrange(catalogue.num_bad)), "whole", 1)
    return _request(catalogue, kind, rng)


def _request(catalogue: Catalogue, kind: str, rng: random.Random) -> Request:
    [manner] = rng.choices(MANNERS, _MANNER_WEIGHTS)
    return Request(catalogue.order(kind, rng.randrange(NUM_VARIANTS)), manner, rng.randint(1, 6))


def _change(catalogue: Catalogue, rng: random.Random) -> Errand:
    """A visit of a model or an adapter, or a sleep of a model, which the next request ends."""
    names = catalogue.names
    name = rng.choice(["visitor", "visiting adapter", "sleep"])
    if name == "sleep":
        path = f"/sleep?model={rng.choice(names.models)}&level={rng.choice([1, 1, 2])}"
        return Errand(name, (Change(path, {}),), name)
    visits = tuple(_request(catalogue, name, rng) for _ in range(rng.randint(1, 4)))
    gone = Request(catalogue.order(name, 0), "whole", 1)
    refused = Request(Order("gone", 0, gone.order.path, gone.order.body, (404,)), "whole", 1)
    if name == "visitor":
        come = Change("/models/load", {"model": names.visitor})
        go = Change("/models/unload", {"model": names.visitor})
    else:
        body = {"lora_name": names.visiting_adapter, "model": names.text}
        come = Change("/v1/load_lora_adapter", body)
        go = Change("/v1/unload_lora_adapter", body)
    return Errand(name, (come, *visits, go, refused), name)
