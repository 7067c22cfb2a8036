"""Pieces of Markdown that generated pages share."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from loadtest.plan import NATIVE_RUNG


def begin_mark(name: str, command: str) -> str:
    return f"<!-- {name}: written by {command} -->\n"


END_MARK = "<!-- end -->\n"


def page_with(page: str, texts: Mapping[str, str], command: str) -> str:
    """The page with each text between the two marks of its name.

    Raises ValueError if the page has no marks of that name and command.
    """
    for name, text in texts.items():
        before, mark, rest = page.partition(begin_mark(name, command))
        _, end, after = rest.partition(END_MARK)
        if not end:
            lines = f"{begin_mark(name, command)}{END_MARK}"
            raise ValueError(f"the page has no place for {name}: add these lines to it\n\n{lines}")
        page = f"{before}{mark}\n{text}\n\n{end}{after}"
    return page


def version(document: Mapping[str, Any]) -> str:
    """Date and commit of a result."""
    state = " with uncommitted changes" if document["uncommitted_changes"] else ""
    return f"{document['started_at'][:10]}, commit {(document['commit'] or 'unknown')[:12]}{state}"


def origin(document: dict[str, Any]) -> str:
    """Command, label, date, commit and machine of a result, and the rung if it was restricted."""
    machine = document["machine"]
    notes = " Cut short: not every repeat was measured." if document.get("partial") else ""
    if document.get("quick"):
        notes += " A quick run: these numbers mean nothing."
    label = f"{document['label']}. " if document["label"] else ""
    rung = document.get("rung", NATIVE_RUNG)
    held = "" if rung == NATIVE_RUNG else f", restricted to {rung}"
    return (
        f"    {document['command']}\n\n"
        f"{label}{version(document)}, {machine['cores']} cores "
        f"of {machine['cpu']} (family/model {machine['cpu_family_model']}){held}.{notes}"
    )


def versions(comparison: dict[str, Any]) -> str:
    """A sentence with each version and the first server that has it; empty without versions."""
    first: dict[str, str] = {}
    for server in comparison["servers"]:
        if version := server.get("version"):
            first.setdefault(version, server["name"])
    named = ", ".join(f"{name} ({version})" for version, name in first.items())
    return f"Versions: {named}." if named else ""


def noise_note(document: dict[str, Any], cpus: Sequence[dict[str, float]]) -> str:
    """A note on the CPU that other processes took; `cpus` are the shares of each run shown."""
    if not cpus:
        return "Nothing was measured."
    worst = {key: max(cpu[key] for cpu in cpus) for key in ("others", "loadtest", "steal")}
    repeats, discarded = document["repeats"], len(document["discarded"])
    again = f"; noisier runs that were repeated: {discarded}" if discarded else ""
    return (
        f"{repeats} repeat{'s' * (repeats > 1)}. Other processes took at most "
        f"{worst['others']:.1%} of the CPU in a run (limit {document['max_others']:.0%}{again}), "
        f"the load generator {worst['loadtest']:.1%}, the hypervisor {worst['steal']:.1%}."
    )


def with_range(values: Sequence[float], digits: int | None = None) -> str:
    """The median, with the lowest and the highest value if there are several."""
    if not values:
        return "-"
    middle = number(median(values), digits)
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values), digits)}-{number(max(values), digits)})"


def number(value: float | None, digits: int | None = None) -> str:
    """About three digits unless `digits` says how many decimals."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if value >= 100 else 1
    return f"{value:.{digits}f}"


def ratio(ours: float | None, theirs: float | None) -> str:
    """Two decimals; a dash where there is nothing to divide."""
    return "-" if ours is None or not theirs else f"{ours / theirs:.2f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int) -> str:
    """A Markdown table; all columns but the first few are aligned to the right."""
    rules = ["---"] * num_text_columns + ["---:"] * (len(heads) - num_text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *rows))
