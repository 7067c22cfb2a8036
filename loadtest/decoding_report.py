"""The table of what decoding features cost, computed from the rows of the requests."""

from collections.abc import Iterable
from statistics import median
from typing import Any

from loadtest.markdown import number, origin, table, versions, with_range

_NOTE = """\
**ms**: time of a request / {tokens} tokens, prompt included; the median over the requests of a run,
then over the {repeats} repeats. **factor**: this time divided by that of the case in the column
"compared with", in the same repeat. Cases take turns, in another order in each repeat; requests by
the number of clients: {counts}. An unmeasured round comes first. Tasks: *story*: the prompt of the
comparisons with 20 words, new in each repeat; *copy*: 80 random words twice and the first four once
more, which the model continues by copying; *again*: stories whose prompts, and therefore answers,
were seen before. All requests have `ignore_eos`."""


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
        counts=", ".join(f"{count} at {n}" for n, count in document["num_requests"].items()),
    )
    parts = [
        origin(document),
        note.replace("\n", " "),
        table([*heads, "failed"], rows, num_text_columns=3),
    ]
    return "\n\n".join([*parts, f"{_noise(document)} {versions(document)}".rstrip()])


def _times(runs: list[dict[str, Any]]) -> dict[tuple[str | None, int], dict[int, float]]:
    """The ms per token of each repeat, by case and number of clients."""
    found: dict[tuple[str | None, int], dict[int, float]] = {}
    for run in runs:
        good = [row for row in run["requests"] if "error" not in row and "end_ms" in row]
        if good:
            of_case = found.setdefault((run["case"], run["concurrency"]), {})
            of_case[run["repeat"]] = median(row["end_ms"] / row["max_tokens"] for row in good)
    return found


def _factor(own: dict[int, float], base: dict[int, float]) -> str:
    factors = [own[repeat] / base[repeat] for repeat in own if repeat in base]
    return with_range(factors, 2)


def _median(values: Iterable[float]) -> float | None:
    values = list(values)
    return median(values) if values else None


def _num_failed(runs: list[dict[str, Any]], case: str) -> int:
    return sum("error" in row for run in runs if run["case"] == case for row in run["requests"])


def _noise(document: dict[str, Any]) -> str:
    others = [run["cpu"]["others"] for run in document["runs"]]
    if not others:
        return "Nothing was measured."
    return (
        f"Other processes took {median(others):.1%} of the CPU in the median run and at most "
        f"{max(others):.1%}; no run was repeated."
    )
