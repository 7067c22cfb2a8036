"""Writes the tables and the plot of docs/SCALING.md, from docs/scaling.json."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.llm.cost.step_cost import TYPICAL
from loadtest.markdown import page_with, table
from tools.scaling.experiments import RATE

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "scaling.json"
PAGE = DOCS / "SCALING.md"
PLOT = DOCS / "img" / "scaling.svg"
COMMAND = "python -m tools.scaling"
REQUESTS_A_DAY = 10
"""The requests of a user, on average."""
SHARE_OF_PEAK_HOUR = 0.2
"""The share of a day's requests that come in its busiest hour."""
USERS = (100, 1_000, 10_000, 100_000, 1_000_000)
CORES_OF_REPLICA, CORES_OF_SERVER = 1, 64
LEAST = 50
"""The least requests of a replica for which it means something how evenly they are shared out."""

Rows = Sequence[Mapping[str, Any]]


def write_page(data: Mapping[str, Any]) -> None:
    """Write what there are numbers for."""
    from tools.scaling.plot import plot_rates  # matplotlib takes a second

    tables: dict[str, Callable[[Any], str]] = {
        "sizes": sizes,
        "failure": failure,
        "autoscaling": autoscaling,
        "apart": apart,
        "handover": handover,
    }
    texts = {name: text(data[name]) for name, text in tables.items() if name in data}
    texts["costs"] = costs(data.get("costs"))
    if "sizes" in data:
        texts["users"] = users(data["sizes"])
    PAGE.write_text(page_with(PAGE.read_text(), texts, COMMAND))
    if "rates" in data:
        plot_rates(data["rates"], PLOT)


def costs(measured: Mapping[str, Any] | None) -> str:
    """What a step of the model costs."""
    if measured is None:
        source = "`engine/llm/cost/step_cost.py::TYPICAL`, for a model of 135 million parameters"
        return f"Times are those of {source} on one core: {_times(TYPICAL)}"
    return (
        f"Measured on {measured['machine']} with {measured['model']}: {_times(measured['costs'])} "
        f"Of {measured['num_steps']:,} steps {measured['num_late']:,} were late, as other programs "
        f"ran; for the rest the fit is off by {measured['median_error']:.0%} in the median and by "
        f"{measured['p90_error']:.0%} for one in ten."
    )


def _times(costs: Sequence[float]) -> str:
    step, decode, context, prompt, pair = costs
    return (
        f"a step takes {1e3 * step:.1f} ms, "
        f"each text that is being written {1e3 * decode:.2f} ms more and each 1,000 tokens before "
        f"its next one {1e6 * context:.2f} ms, each prompt token {1e3 * prompt:.2f} ms and each "
        f"1,000 tokens before that {1e6 * pair:.2f} ms."
    )


def sizes(rows: Rows) -> str:
    heads = (
        *("replicas", "router", "requests", "cached", "of one large cache", "max / mean work"),
        *("well served", "goodput a replica", "first token s p50 / p95", "token ms p50", "busy"),
    )
    return table(heads, [_size(row) for row in rows], num_text_columns=2)


def _size(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['replicas']:,}",
        row["policy"],
        f"{row['requests']:,}",
        f"{row['hit_rate']:.1%}",
        f"{row['hit_rate'] / row['one_cache']:.0%}",
        f"{row['max_over_mean']:.2f}" if row["requests"] >= LEAST * row["replicas"] else "",
        *_quality(row),
    ]


def _quality(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['share_good']:.1%}",
        f"{RATE * row['share_good']:.2f}",
        f"{row['p50_first_s']:.2f} / {row['p95_first_s']:.2f}",
        f"{row['p50_token_ms']:.0f}",
        f"{row['busy']:.0%}",
    ]


def users(rows: Rows) -> str:
    """How many replicas and machines users need, at the goodput of the simulated replicas."""
    own = [row for row in rows if row["policy"] == "prefixes"]
    of_size = {row["replicas"]: RATE * row["share_good"] for row in own}
    lines = []
    for number in USERS:
        rate = number * REQUESTS_A_DAY * SHARE_OF_PEAK_HOUR / 3600
        replicas = next(
            (count for size in sorted(of_size) if (count := rate / of_size[size]) <= size),
            rate / of_size[max(of_size)],
        )
        needed = max(1, math.ceil(replicas))
        machines = math.ceil(needed * CORES_OF_REPLICA / CORES_OF_SERVER)
        lines.append([f"{number:,}", f"{rate:.2f}", f"{needed:,}", f"{machines:,}"])
    heads = ("users", "requests a second, busiest hour", "replicas", "64-core machines")
    return table(heads, lines, num_text_columns=0)


def failure(rows: Rows) -> str:
    heads = (
        *("replicas", "requests sent again", "arrivals within a minute", "of these late for it"),
        *("mean first token s, without / with", "cached, without / with"),
    )
    lines = [
        [
            str(row["replicas"]),
            str(row["resent"]),
            str(row["near"]),
            str(row["late"]),
            " / ".join(f"{value:.2f}" for value in row["mean_wait_s"]),
            " / ".join(f"{value:.1%}" for value in row["hit_rate"]),
        ]
        for row in rows
    ]
    return table(heads, lines, num_text_columns=0)


def autoscaling(rows: Rows) -> str:
    heads = (
        *("at the start", "all awake after s", "first token s p95, first minute"),
        *("well served, first minute", "well served, all"),
    )
    lines = [
        [
            row["start"],
            f"{row['all_awake_s']:.1f}",
            f"{row['p95_wait_s']:.2f}",
            f"{row['good_in_first_minute']:.1%}",
            f"{row['share_good']:.1%}",
        ]
        for row in rows
    ]
    return table(heads, lines, num_text_columns=1)


def apart(rows: Rows) -> str:
    heads = (
        *("requests a second for each", "replicas", "well served", "of these without a pause"),
        *("first token s p50 / p95", "token ms p50 / p95", "cached", "busy"),
    )
    lines = [
        [
            f"{row['rate']:.1f}",
            row["replicas"],
            f"{row['share_good']:.1%}",
            f"{row['share_smooth']:.1%}",
            f"{row['p50_first_s']:.2f} / {row['p95_first_s']:.2f}",
            f"{row['p50_token_ms']:.0f} / {row['p95_token_ms']:.0f}",
            f"{row['hit_rate']:.1%}",
            f"{row['busy']:.0%}",
        ]
        for row in rows
    ]
    return table(heads, lines, num_text_columns=2)


def handover(rows: Rows) -> str:
    heads = (
        *("by", "prompt tokens", "computed here s", "computed there s", "then fetched s"),
        "fetched / computed",
    )
    lines = [
        [
            row["by"],
            f"{row['prompt_tokens']:,}",
            f"{row['computed_s']:.2f}",
            f"{row['prefill_s']:.2f}",
            f"{row['imported_s']:.2f}",
            f"{row['imported_s'] / row['computed_s']:.2f}",
        ]
        for row in rows
    ]
    return table(heads, lines, num_text_columns=1)
