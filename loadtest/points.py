"""The points of a comparison and the numbers that tables show of them.

All are computed from the rows of the requests, not read from stored summaries.
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

from loadtest.metrics import summarise
from loadtest.record import RequestRecord
from loadtest.workload import PEERS_NUM_WORDS


@dataclass(frozen=True, slots=True)
class Point:
    """The repeats of one server at one concurrency and prompt length, with their summaries."""

    server: str
    prompt_words: int
    concurrency: int
    runs: tuple[dict[str, Any], ...]
    summaries: tuple[dict[str, Any], ...]

    @property
    def load(self) -> tuple[int, int]:
        """The words of a prompt and the number of clients, which all servers share."""
        return self.prompt_words, self.concurrency

    def by_repeat(self, value: "Metric") -> dict[int, float]:
        """The value of each repeat that has it."""
        pairs = zip(self.runs, self.summaries, strict=True)
        every = {run["repeat"]: value(run, summary) for run, summary in pairs}
        return {repeat: found for repeat, found in every.items() if found is not None}

    def median_of(self, value: "Metric") -> float | None:
        values = self.values(value)
        return median(values) if values else None

    def values(self, value: "Metric") -> list[float]:
        pairs = zip(self.runs, self.summaries, strict=True)
        return [v for run, summary in pairs if (v := value(run, summary)) is not None]


Metric = Callable[[dict[str, Any], dict[str, Any]], float | None]


def latency(name: str, statistic: str) -> Metric:
    """A metric such as `latency("ttft_ms", "p50")`."""

    def value(run: dict[str, Any], summary: dict[str, Any]) -> float | None:
        return summary[name][statistic] if summary[name] else None

    return value


def throughput(run: dict[str, Any], summary: dict[str, Any]) -> float | None:
    return float(summary["output_tok_s"])


def unevenness(run: dict[str, Any], summary: dict[str, Any]) -> float | None:
    """The 99th percentile of the gaps between tokens, divided by the median."""
    itl = summary["itl_ms"]
    return itl["p99"] / itl["p50"] if itl and itl["p50"] else None


def goodput(limit_ms: int) -> Metric:
    """A metric: requests a second that kept 99 % of their gaps between tokens within the limit."""

    def value(run: dict[str, Any], summary: dict[str, Any]) -> float | None:
        return float(summary["itl_goodput_request_s"][str(limit_ms)])

    return value


def request_rate(run: dict[str, Any], summary: dict[str, Any]) -> float | None:
    return float(summary["request_s"])


def memory(run: dict[str, Any], summary: dict[str, Any]) -> float | None:
    return run["memory"]["pss_mib"] if run["memory"] else None


def prompt_tokens(run: dict[str, Any], summary: dict[str, Any]) -> float | None:
    """Prompt tokens per request, by the server's own usage."""
    return summary["prompt_tokens"] / summary["num_ok"] if summary["num_ok"] else None


def points(comparison: dict[str, Any]) -> list[Point]:
    """All measured points, ordered by server and then by load."""
    runs: dict[tuple[str, int, int], list[dict[str, Any]]] = {}
    for run in comparison["runs"]:
        num_words = run.get("prompt_words", PEERS_NUM_WORDS)
        runs.setdefault((run["server"], num_words, run["concurrency"]), []).append(run)
    found = []
    for server in comparison["servers"]:
        for num_words in comparison.get("prompt_words", (PEERS_NUM_WORDS,)):
            for concurrency in comparison["concurrencies"]:
                key = (server["name"], num_words, concurrency)
                if measured := tuple(runs.get(key, ())):
                    summaries = tuple(summary_of(run) for run in measured)
                    found.append(Point(*key, measured, summaries))
    return found


def summary_of(run: dict[str, Any]) -> dict[str, Any]:
    records = [RequestRecord.from_row(row) for row in run["requests"]]
    return summarise(records, run["summary"]["wall_s"], run["summary"]["num_planned"])
