"""Writes the tables of `docs/benchmarks.md` from the committed raw results.

Every number in a table is computed from the rows of the requests, not read from stored summaries.
"""

import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.decoding_report import decoding_section
from loadtest.hot_load_report import hot_loads_section
from loadtest.image_report import images_section
from loadtest.markdown import (
    noise_note,
    number,
    origin,
    page_with,
    ratio,
    table,
    versions,
    with_range,
)
from loadtest.points import (
    Metric,
    Point,
    goodput,
    latency,
    memory,
    points,
    prompt_tokens,
    request_rate,
    throughput,
)
from loadtest.results import (
    COMPARISON_FORMAT,
    DECODING_FORMAT,
    HOT_LOADS_FORMAT,
    IMAGES_FORMAT,
    SWAPS_FORMAT,
    TURNS_FORMAT,
    load_any_result,
)
from loadtest.swap_report import swaps_section
from loadtest.turns import turns_section
from loadtest.workload import PEERS_NUM_WORDS, PEERS_OUTPUT_TOKENS

_SMOOTH_MS = 100
COMMAND = "python -m loadtest report"
_MARK = re.compile(rf"<!-- (\S+): written by {COMMAND} -->")


def render_page(page: str, raw: Path) -> str:
    """The page with the tables of each raw result between the marks of its name.

    Raises ValueError for a file that is no result, for one without marks and for marks without one.
    """
    texts = {}
    for path in sorted(raw.glob("*.json")):
        document = load_any_result(path)
        if document["format"] not in _SECTIONS:
            raise ValueError(f"{path.name} is a single run: the page shows comparisons only")
        texts[path.stem] = _SECTIONS[document["format"]](document)
    if missing := set(_MARK.findall(page)) - texts.keys():
        names = ", ".join(f"{name}.json" for name in sorted(missing))
        raise ValueError(f"the page has marks for results that {raw} does not hold: {names}")
    return page_with(page, texts, COMMAND)


def comparison_section(comparison: dict[str, Any]) -> str:
    measured = points(comparison)
    parts = [origin(comparison), *_load_note(comparison), _comparison_table(comparison, measured)]
    parts += _ratio_parts(comparison, measured)
    cpus = [run["cpu"] for point in measured for run in point.runs]
    note = noise_note(comparison, cpus)
    if cpus:
        note = f"{note} {_idle_note(comparison)} {versions(comparison)}".rstrip()
    return "\n\n".join([*parts, note])


def _load_note(comparison: dict[str, Any]) -> list[str]:
    """A paragraph if the requests are not those of the standard workload."""
    words = comparison.get("prompt_words", [PEERS_NUM_WORDS])
    output_tokens = comparison.get("output_tokens", PEERS_OUTPUT_TOKENS)
    counts = comparison.get("num_requests") or {}
    if (words, output_tokens, counts) == ([PEERS_NUM_WORDS], PEERS_OUTPUT_TOKENS, {}):
        return []
    note = f"Prompts of {', '.join(map(str, words))} random words, {output_tokens} output tokens"
    if counts:
        pairs = [f"{count} at {clients}" for clients, count in counts.items()]
        note += f"; requests by the number of clients: {', '.join(pairs)}"
    return [f"{note}. Warm-up requests before each run: {comparison['warmup']}."]


def _has_lengths(comparison: dict[str, Any]) -> bool:
    return len(comparison.get("prompt_words", ())) > 1


def _length(comparison: dict[str, Any], point: Point) -> list[str]:
    """The cell of a prompt's length, if lengths differ."""
    has_lengths = _has_lengths(comparison)
    return [number(point.median_of(prompt_tokens), 0)] if has_lengths else []


def _length_head(comparison: dict[str, Any]) -> list[str]:
    return ["prompt tokens"] if _has_lengths(comparison) else []


def _comparison_table(comparison: dict[str, Any], measured: list[Point]) -> str:
    rows, last = [], None
    for point in measured:
        starts = [s["ready_s"] for s in comparison["starts"] if s["server"] == point.server]
        first = point.server != last
        last = point.server
        mark = "" if all(run["quiet"] for run in point.runs) else " †"
        rows.append(
            [
                point.server if first else "",
                f"{median(starts):.1f}" if first and starts else "",
                *_length(comparison, point),
                str(point.concurrency),
                with_range(point.values(throughput), 0) + mark,
                _pair(point, "ttft_ms"),
                _pair(point, "itl_ms"),
                _smooth(point),
                number(point.median_of(memory), 0),
                str(sum(summary["num_failed"] for summary in point.summaries)),
            ]
        )
    heads = ["server", "start-up s", *_length_head(comparison), "clients", "out tok/s (range)"]
    heads += ["TTFT ms p50 / p99", "ITL ms p50 / p99", "smooth / all req/s"]
    return table([*heads, "memory MiB", "failed"], rows, num_text_columns=1)


_RATIOS: dict[str, Metric] = {
    "out tok/s": throughput,
    "TTFT p50": latency("ttft_ms", "p50"),
    "ITL p50": latency("itl_ms", "p50"),
    "ITL p99": latency("itl_ms", "p99"),
    "memory": memory,
}


def _ratio_parts(comparison: dict[str, Any], measured: list[Point]) -> list[str]:
    """A table of the medians of each group's first server, divided by those of its others."""
    groups: dict[str | None, list[str]] = {}
    for server in comparison["servers"]:
        # Older results have one group at most.
        for group in server.get("groups") or [server.get("group")]:
            groups.setdefault(group, []).append(server["name"])
    rows = []
    for subject, *others in groups.values():
        ours = {point.load: point for point in measured if point.server == subject}
        rows += [
            [
                f"{subject} / {theirs.server}",
                *_length(comparison, theirs),
                str(theirs.concurrency),
                *(_ratio(comparison, ours[theirs.load], theirs, m) for m in _RATIOS.values()),
            ]
            for theirs in measured
            if theirs.server in others and theirs.load in ours
        ]
    if not rows:
        return []
    what = "ratio of medians"
    if comparison.get("together"):
        what = "median of the repeats' ratios (range)"
    heads = [what, *_length_head(comparison), "clients", *_RATIOS]
    return [table(heads, rows, num_text_columns=1)]


def _ratio(comparison: dict[str, Any], ours: Point, theirs: Point, metric: Metric) -> str:
    """The ratio of medians or, if servers ran at once, the median of the repeats' ratios."""
    if not comparison.get("together"):
        return ratio(ours.median_of(metric), theirs.median_of(metric))
    of_theirs = theirs.by_repeat(metric)
    ratios = [
        value / of_theirs[repeat]
        for repeat, value in ours.by_repeat(metric).items()
        if of_theirs.get(repeat)
    ]
    if not ratios:
        return ratio(None, None)
    return f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def _idle_note(comparison: dict[str, Any]) -> str:
    idle = [start.get("idle_cpu", 0.0) for start in comparison["starts"]]
    return f"An idle server took at most {max(idle, default=0.0):.1%}."


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    COMPARISON_FORMAT: comparison_section,
    IMAGES_FORMAT: images_section,
    DECODING_FORMAT: decoding_section,
    HOT_LOADS_FORMAT: hot_loads_section,
    TURNS_FORMAT: turns_section,
    SWAPS_FORMAT: swaps_section,
}


def _pair(point: Point, name: str) -> str:
    p50, p99 = (point.median_of(latency(name, q)) for q in ("p50", "p99"))
    return f"{number(p50)} / {number(p99)}"


def _smooth(point: Point) -> str:
    """Requests a second without long gaps between their chunks, and all requests a second."""
    rates = (point.median_of(metric) for metric in (goodput(_SMOOTH_MS), request_rate))
    return " / ".join(number(rate, 2) for rate in rates)
