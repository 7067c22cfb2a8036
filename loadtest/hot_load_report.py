"""The section of loads on the benchmark page, computed from the rows."""

from statistics import median
from typing import Any

from loadtest.hot_loads import Gaps
from loadtest.markdown import commands, heading, number, table
from loadtest.metrics import percentile


def hot_loads_section(document: dict[str, Any]) -> str:
    """A row per number of streams."""
    rows = [
        _row(clients, [run for run in document["runs"] if run["clients"] == clients])
        for clients in dict.fromkeys(run["clients"] for run in document["runs"])
    ]
    heads = ["streams", "loads", "load ms p50 (range)", "gap ms p50 / p99 between loads"]
    heads += ["longest gap ms between loads", "in a load: p50 of the longest", "longest"]
    others = max((run["cpu"]["others"] for run in document["runs"]), default=0.0)
    text = (
        f"{document['repeats']} repeats. {len(document['adapters'])} adapters are loaded one after "
        f"the other, {document['pause_s'] * 1000:.0f} ms apart, while texts of the base stream; "
        "**gap** is the time between two texts of a stream, in a load if they share any of their "
        f"time. Others took at most {others:.1%} of the CPU."
    )
    parts = [heading(document), text, table(heads, rows, num_text_columns=1), commands(document)]
    return "\n\n".join(parts)


def _row(clients: int, runs: list[dict[str, Any]]) -> list[str]:
    loads_ms = [1000 * (load["end_s"] - load["begin_s"]) for run in runs for load in run["loads"]]
    gaps = [Gaps.of(run) for run in runs]
    others = sorted(gap for one in gaps for gap in one.others)
    longest = [_longest_in(load, run) for run in runs for load in run["loads"]]
    known = [gap for gap in longest if gap is not None]
    return [
        str(clients),
        str(len(loads_ms)),
        f"{median(loads_ms):.0f} ({min(loads_ms):.0f}-{max(loads_ms):.0f})",
        " / ".join(number(percentile(others, q)) for q in (50, 99)) if others else "-",
        number(others[-1] if others else None),
        number(median(known) if known else None),
        number(max(known, default=None)),
    ]


def _longest_in(load: dict[str, Any], run: dict[str, Any]) -> float | None:
    """The longest gap of any stream that shares time with one load."""
    return max(Gaps.of(run | {"loads": [load]}).during, default=None)
