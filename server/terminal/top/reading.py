"""What a server does at one moment, and how fast its counters grow between two."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from server.terminal.client import fetch, fetch_text, not_ours

_PREFIX = "tandem_"
_WANTED = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio"),
    *("generation_tokens_total", "image_images_total"),
    *("memory_held_bytes", "memory_budget_bytes"),
)
_WANTED_ENDS = ("_num_running", "_num_waiting")
"""The gauges of kinds other than text models."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A number of `/metrics`, without `tandem_` in its name."""

    name: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Reading:
    """One moment.

    Attributes:
        time_s: a clock that never goes back.
        phase: the server's phase.
        models: the states of `/ready`.
        requests: the running requests, oldest first; with keys, only those of our key.
        samples: numbers of `/metrics`.
    """

    time_s: float
    phase: str
    models: Sequence[dict[str, Any]]
    requests: Sequence[dict[str, Any]]
    samples: Sequence[Sample]

    def sum(self, *names: str, **labels: str) -> float:
        """The sum of metrics over samples with these labels."""
        return sum(
            one.value
            for one in self.samples
            if one.name in names and labels.items() <= one.labels.items()
        )

    def running(self, **labels: str) -> int:
        return self._work("running", labels)

    def waiting(self, **labels: str) -> int:
        return self._work("waiting", labels)

    def _work(self, state: str, labels: dict[str, str]) -> int:
        """What runs or waits at models of all kinds together: each kind has its own gauges."""
        names = {one.name for one in self.samples if one.name.endswith(f"_{state}")}
        return round(self.sum(*names, **labels))

    def tokens(self, model: str | None = None) -> float:
        """The tokens written so far. The counter has those of ended requests."""
        labels = {} if model is None else {"model_name": model}
        in_work = (one for one in self.requests if model in (None, one["model"]))
        counted = self.sum("generation_tokens_total", **labels)
        return counted + sum(one["completion_tokens"] or 0 for one in in_work)

    def images(self, model: str | None = None) -> float:
        """The images drawn so far."""
        labels = {} if model is None else {"model_name": model}
        return self.sum("image_images_total", outcome="completed", **labels)


def read(client: httpx.Client) -> Reading:
    """Ask the server.

    Raises:
        ServerProblem: it does not answer, or refuses.
    """
    ready = fetch(client, "/ready", accept=(200, 503))
    requests = fetch(client, "/v1/requests")
    text = fetch_text(client, "/metrics")
    try:
        phase, models, in_work = ready["phase"], [*ready["models"]], [*requests["data"]]
        return Reading(time.monotonic(), phase, models, in_work, _samples(text))
    except (KeyError, TypeError, ValueError):
        raise not_ours(client) from None


def growth(before: Reading | None, now: Reading, number: Callable[[Reading], float]) -> float:
    """How fast a number has grown between two readings, per second; never below 0, as after a
    restart."""
    if before is None or now.time_s <= before.time_s:
        return 0.0
    return max(0.0, number(now) - number(before)) / (now.time_s - before.time_s)


def _samples(text: str) -> list[Sample]:
    lines = (line for line in text.splitlines() if _is_wanted(line))
    return [
        Sample(one.name.removeprefix(_PREFIX), one.labels, one.value)
        for family in text_string_to_metric_families("\n".join(lines) + "\n")
        for one in family.samples
    ]


def _is_wanted(line: str) -> bool:
    name = line.partition("{")[0].removeprefix(_PREFIX)
    return name in _WANTED or name.endswith(_WANTED_ENDS)
