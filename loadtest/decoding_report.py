"""The section of the benchmark page on what decoding features cost, from the raw results."""

import json
from collections.abc import Iterable
from statistics import median
from typing import Any

from loadtest.markdown import commands, heading, number, table

_NOTE = """\
**ms**: what a client waits per token of its text: the time of a request / {tokens} tokens, prompt
included; of a run the median over its requests, of the {repeats} repeats the median. **factor**:
that time over the one of the case that it is compared with, in the same repeat: median (lowest to
highest). Cases are measured by turns, in another order in each repeat, {counts} requests at
{clients} clients; one unmeasured round comes first. Tasks: *story*: as in a comparison, with 20
words, new in each repeat; *copy*: 80 random words twice and the first four once more, which the
model goes on to copy; *again*: stories whose prompts, and so answers, have come before.
`ignore_eos` is in every request."""


def decoding_section(document: dict[str, Any]) -> str:
    clients = [int(key) for key in document["num_requests"]]
    times = _times(document["runs"])
    rows = []
    for case in document["cases"]:
        cells = [case["name"], case["task"], case.get("against", "")]
        for concurrency in clients:
            own = times.get((case["name"], concurrency), {})
            base = times.get((case.get("against"), concurrency), {})
            cells += [number(_median(own.values()), 2), _factor(own, base)]
        cells.append(str(_num_failed(document["runs"], case["name"])))
        rows.append(cells)
    heads = ["", "task", "compared with"]
    for concurrency in clients:
        heads += [f"{concurrency} client{'s' * (concurrency > 1)}: ms", "factor"]
    note = _NOTE.format(
        tokens=document["output_tokens"],
        repeats=document["repeats"],
        counts=" and ".join(map(str, document["num_requests"].values())),
        clients=" and ".join(document["num_requests"]),
    )
    parts = [
        heading(document),
        note.replace("\n", " "),
        table([*heads, "failed"], rows, num_text_columns=3),
    ]
    return "\n\n".join([*parts, _bodies(document), _noise(document), commands(document)])


def _times(runs: list[dict[str, Any]]) -> dict[tuple[str | None, int], dict[int, float]]:
    """By case and clients, the ms per token of each repeat."""
    found: dict[tuple[str | None, int], dict[int, float]] = {}
    for run in runs:
        good = [row for row in run["requests"] if "error" not in row and "end_ms" in row]
        if good:
            of_case = found.setdefault((run["case"], run["concurrency"]), {})
            of_case[run["repeat"]] = median(row["end_ms"] / row["max_tokens"] for row in good)
    return found


def _factor(own: dict[int, float], base: dict[int, float]) -> str:
    factors = [own[repeat] / base[repeat] for repeat in own if repeat in base]
    if not factors:
        return "-"
    return f"{median(factors):.2f} ({min(factors):.2f}-{max(factors):.2f})"


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return median(values) if values else None


def _num_failed(runs: list[dict[str, Any]], case: str) -> int:
    return sum("error" in row for run in runs if run["case"] == case for row in run["requests"])


def _bodies(document: dict[str, Any]) -> str:
    lines = [
        f"- {case['name']} ({case['server']}): `{json.dumps(case['body'], ensure_ascii=False)}`"
        for case in document["cases"]
    ]
    return "\n".join(["What is sent to which server:", "", *lines])


def _noise(document: dict[str, Any]) -> str:
    others = [run["cpu"]["others"] for run in document["runs"]]
    if not others:
        return "Nothing was measured."
    return (
        f"Others took {median(others):.1%} of the CPU in a run, the median over all, and at most "
        f"{max(others):.1%}; no run was repeated for it."
    )
