"""The table of servers that have more models than memory, computed from the rows."""

from collections.abc import Iterable
from typing import Any

from loadtest.markdown import number, origin, table, versions
from loadtest.metrics import percentile


def swaps_section(document: dict[str, Any]) -> str:
    """A table with a row for each server, and what was lost."""
    heads = ["server", "requests", "lost", "different answers", "loads", "evictions"]
    heads += ["cold first token s p50 / p99", "cold texts", "warm first token s p50 / p99"]
    heads += ["peak PSS MiB", "without the server's own process"]
    others = max((run["cpu"]["others"] for run in document["runs"]), default=0.0)
    budget = document["budget_mib"]
    text = (
        f"{len(document['models'])} models ({', '.join(document['models'])}), {document['users']} "
        f"users who change models at random, {document['seconds']:g} s. "
        + (f"Budget for the models: {budget:g} MiB. " if budget else "")
        + "**cold**: the model was not loaded when the request was sent. **PSS**: of all processes "
        "of the server every half second, mapped files included as far as they are in use. Other "
        f"processes took at most {others:.1%} of the CPU. {versions(document)}"
    ).rstrip()
    rows = table(heads, [_row(run) for run in document["runs"]], num_text_columns=1)
    lost = [
        f"- {run['server']}, lost: {reason}"
        for run in document["runs"]
        for reason in dict.fromkeys(one["lost"] for one in run["requests"] if "lost" in one)
    ]
    return "\n\n".join([origin(document), text, rows, *(["\n".join(lost)] if lost else [])])


def _row(run: dict[str, Any]) -> list[str]:
    requests = run["requests"]
    texts = [one for one in requests if one.get("first_s") is not None]
    cold = [one["first_s"] for one in texts if one["cold"]]
    return [
        run["server"],
        str(len(requests)),
        str(sum("lost" in one for one in requests)),
        str(sum("differs" in one for one in requests)),
        str(sum(run["loads"].values())),
        str(sum(run["evictions"].values())),
        _times(cold),
        str(len(cold)),
        _times(one["first_s"] for one in texts if not one["cold"]),
        number(run["peak_pss_mib"], 0),
        number(run["peak_pss_models_mib"], 0),
    ]


def _times(some: Iterable[float]) -> str:
    ordered = sorted(some)
    return " / ".join(number(percentile(ordered, q), 2) for q in (50, 99)) if ordered else "-"
