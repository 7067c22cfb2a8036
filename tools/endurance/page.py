"""The tables and plots of docs/endurance.md, from docs/endurance.json."""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.markdown import number, page_with, table, version
from loadtest.results import save_result

_DOCS = Path(__file__).parents[2] / "docs"
DATA = _DOCS / "endurance.json"
PAGE = _DOCS / "endurance.md"
PLOT = _DOCS / "img" / "endurance.svg"
COMMAND = "python -m tools.endurance page"
_LONG_GAP_S = 30.0
_MANNERS = {
    "whole": "read whole",
    "stream": "read as a stream, where the route has streams",
    "slow": "read slowly",
    "left": "left by a client that disconnected",
    "leave": "complete before the client would have disconnected from the stream",
    "leave early": "complete before the client would have given up waiting",
}
_BLUE, _RED, _GREEN, _GREY = "#3b6fb6", "#c0504d", "#5b9a4b", "#8a8a8a"


def keep(part: str, found: dict[str, Any], path: Path = DATA) -> None:
    """Replace a part of the results."""
    data = json.loads(path.read_text()) if path.exists() else {}
    save_result(data | {part: found}, path)


def write_page() -> None:
    """Write the tables and the plot."""
    data = json.loads(DATA.read_text())
    PAGE.write_text(page_with(PAGE.read_text(), sections(data), COMMAND))
    if "soak" in data:
        plot(data["soak"], PLOT)


def sections(data: Mapping[str, Any]) -> dict[str, str]:
    """The generated parts of the page, by name."""
    texts = {}
    if "soak" in data:
        texts["soak"] = _soak(data["soak"])
    if "chaos" in data:
        texts["chaos"] = _chaos(data["chaos"])
    return texts


def _soak(run: Mapping[str, Any]) -> str:
    compared = [
        [kind, str(count)] for kind, count in sorted(run["compared"].items(), key=_by_count)
    ]
    manners = ", ".join(f"{run['manners'].get(name, 0)} {text}" for name, text in _MANNERS.items())
    changes = ", ".join(f"{count} `{name}`" for name, count in sorted(run["changes"].items()))
    parts = [
        f"Seed {run['seed']}, {run['seconds'] / 60:.0f} minutes, of which the run was suspended "
        f"for {_suspended_s(run) / 60:.0f} because of other work on the machine, {run['users']} "
        f"users, a quiet point every {run['lap_s']:g} s, {sum(run['manners'].values())} requests, "
        f"**{run['num_problems']} problems** ({version(run)}).",
        table(["kind of request", "answers compared"], compared, num_text_columns=1),
        f"Answers: {manners}. Calls of the operator's routes: {changes}.",
        _growth(run),
    ]
    if run["problems"]:
        parts.append("\n".join(f"- {problem}" for problem in run["problems"]))
    return "\n\n".join(parts)


def _by_count(pair: tuple[str, int]) -> tuple[int, str]:
    return -pair[1], pair[0]


def _suspended_s(run: Mapping[str, Any]) -> float:
    """Time without samples, which are otherwise taken every few seconds."""
    times = [0, *_column(run["busy"], "at_s"), run["seconds"]]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    return sum(gap for gap in gaps if gap > _LONG_GAP_S)


def _column(seen: list[list[Any]], name: str) -> list[float]:
    """The values of a name in a table of samples."""
    names, *rows = seen
    return [row[names.index(name)] for row in rows]


def _growth(run: Mapping[str, Any]) -> str:
    if not run["growth"]:
        return "Too few quiet points to fit growth."
    rows = [
        [
            fit["name"] + (" (MiB)" if fit["name"].startswith("memory") else ""),
            number(fit["start"], 0),
            f"{fit['per_hour']:+.1f}",
            "-" if fit["bound_per_hour"] is None else f"{fit['bound_per_hour']:g}",
        ]
        for fit in run["growth"]
    ]
    heads = ["at quiet points, after the warm-up", "level", "growth per hour", "bound"]
    return table(heads, rows, num_text_columns=1)


def _chaos(run: Mapping[str, Any]) -> str:
    seconds: dict[str, list[float]] = defaultdict(list)
    outcomes: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for one in run["runs"]:
        outcomes.update(one["outcomes"])
        for fault in one["faults"]:
            if "lacks" in fault:
                left_out[fault["lacks"]] += 1
            if fault["recovered_s"] is not None:
                seconds[fault["name"]].append(fault["recovered_s"])
    seeds = [one["seed"] for one in run["runs"]]
    num_again = sum(one["tries"] > 1 for one in run["runs"])
    num_clean = sum(not one["problems"] for one in run["runs"])
    rows = [
        [name, str(len(some)), number(median(some), 1), number(max(some), 1)]
        for name, some in sorted(seconds.items())
    ]
    told = ", ".join(f"{count} `{name}`" for name, count in outcomes.most_common())
    parts = [
        f"Seeds {min(seeds)} to {max(seeds)}: **{num_clean} of {len(seeds)} clean** "
        f"({version(run)}). The slowest start took {number(run['load_s'], 1)} s. Seeds that were "
        f"tried again because the machine was suspended: {num_again}.",
        table(
            ["fault", "times", "median s to correct answers", "most"],
            rows,
            num_text_columns=1,
        ),
        f"Outcomes of {outcomes.total()} requests under faults: {told}. `left` means that the "
        "client disconnected, `lost` that the connection broke.",
    ]
    for part, count in left_out.items():
        parts.append(f"Left out, because this system allows no {part} of our own: {count} faults.")
    for one in run["runs"]:
        parts += [f"- seed {one['seed']}: {_head(problem)}" for problem in one["problems"]]
    return "\n\n".join(parts)


def _head(problem: str) -> str:
    """A problem without the log that may follow."""
    return problem.partition("\n")[0].removesuffix(":")


def plot(run: Mapping[str, Any], path: Path) -> None:
    """Memory, descriptors, threads and blocks over the time of a soak."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.size": 9, "svg.hashsalt": "tandem", "svg.fonttype": "none"})
    figure, axes = plt.subplots(2, 2, figsize=(8.4, 4.6), sharex=True)
    panels = [
        ("memory", "MiB of all processes", _BLUE),
        ("descriptors", "open descriptors", _RED),
        ("threads", "threads", _GREEN),
        ("blocks", "share of KV blocks in use", _GREY),
    ]
    for axis, (name, label, colour) in zip(axes.flat, panels, strict=True):
        for rows, style in ((run["busy"], {"alpha": 0.35, "linewidth": 0.8}), (run["quiet"], {})):
            minutes = [at_s / 60 for at_s in _column(rows, "at_s")]
            values = _column(rows, name)
            kind = "quiet points" if rows is run["quiet"] else "under load"
            axis.plot(
                minutes,
                values,
                "o" if rows is run["quiet"] else "-",
                markersize=3,
                color=colour,
                label=kind,
                **style,
            )
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(frameon=False, loc="lower right")
    for axis in axes[1]:
        axis.set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
