"""The table of adapters loaded while texts stream, computed from the rows."""

from statistics import median
from typing import Any

from loadtest.hot_loads import Gaps
from loadtest.markdown import number, origin, table, with_range
from loadtest.metrics import percentile


def hot_loads_section(document: dict[str, Any]) -> str:
    """A table with a row for each number of streams."""
    rows = [
        _row(clients, [run for run in document["runs"] if run["clients"] == clients])
        for clients in dict.fromkeys(run["clients"] for run in document["runs"])
    ]
    heads = ["streams", "loads", "load ms p50 (range)", "gap ms between loads p50 / p99", "longest"]
    heads += ["longest gap ms during a load p50", "longest"]
    others = max((run["cpu"]["others"] for run in document["runs"]), default=0.0)
    text = (
        f"{document['repeats']} repeats. {len(document['adapters'])} adapters are loaded one after "
        f"the other, {document['pause_s'] * 1000:.0f} ms apart, while texts of the base stream. "
        "**gap**: the time between two chunks of a stream; it is during a load if any part of it "
        f"is. Other processes took at most {others:.1%} of the CPU."
    )
    return "\n\n".join([origin(document), text, table(heads, rows, num_text_columns=1)])


def _row(clients: int, runs: list[dict[str, Any]]) -> list[str]:
    loads_ms = [1000 * (load["end_s"] - load["begin_s"]) for run in runs for load in run["loads"]]
    gaps = [Gaps.of(run) for run in runs]
    others = sorted(gap for one in gaps for gap in one.others)
    longest = [_longest_in(load, run) for run in runs for load in run["loads"]]
    known = [gap for gap in longest if gap is not None]
    return [
        str(clients),
        str(len(loads_ms)),
        with_range(loads_ms, 0),
        " / ".join(number(percentile(others, q)) for q in (50, 99)) if others else "-",
        number(others[-1] if others else None),
        number(median(known) if known else None),
        number(max(known, default=None)),
    ]


def _longest_in(load: dict[str, Any], run: dict[str, Any]) -> float | None:
    """The longest gap of any stream during one load."""
    return max(Gaps.of(run | {"loads": [load]}).during, default=None)
