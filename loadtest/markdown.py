"""The pieces of Markdown that the sections of the benchmark page share."""

import json
from collections.abc import Sequence
from typing import Any

from loadtest.plan import NATIVE_RUNG


def heading(document: dict[str, Any]) -> str:
    """Title, date, commit, machine and command of a result.

    The title says so when all servers were held to fewer instructions than the processor has.
    """
    machine = document["machine"]
    state = " with uncommitted changes" if document["uncommitted_changes"] else ""
    commit = (document["commit"] or "unknown")[:12]
    notes = " Cut short: not every repeat was measured." if document.get("partial") else ""
    if document.get("quick"):
        notes += " A quick run: these numbers mean nothing."
    rung = document.get("rung", NATIVE_RUNG)
    held = "" if rung == NATIVE_RUNG else f", forced to {rung}"
    return (
        f"## {document['label'] or 'Unnamed'}{held}\n\n"
        f"{document['started_at'][:10]}, commit {commit}{state}, {machine['cores']} cores of "
        f"{machine['cpu']} (family/model {machine['cpu_family_model']}; {machine['cpu_flags']}), "
        f"{machine['memory_gib']} GiB, {machine['system']}, Python {machine['python']}.{notes}\n\n"
        f"    {document['command']}"
    )


def commands(comparison: dict[str, Any]) -> str:
    """How each server was started."""
    parts = []
    for server in comparison["servers"]:
        version = f" ({server['version']})" if server.get("version") else ""
        body = json.dumps(server["extra_body"]) if server.get("extra_body") else ""
        with_body = f", with `{body}` in every request" if body else ""
        models = ", ".join(f"`{name}`" for name in server.get("models", ()))
        asked_for = f", asked for {models} in turn" if models else ""
        parts.append(
            f"{server['name']}{version}{with_body}{asked_for}:\n\n```sh\n{server['command']}\n```"
        )
    return "\n\n".join(parts)


def noise_note(document: dict[str, Any], cpus: Sequence[dict[str, float]]) -> str:
    """How much of the CPU others took meanwhile; `cpus` are the shares of each run shown."""
    if not cpus:
        return "Nothing was measured."
    worst = {key: max(cpu[key] for cpu in cpus) for key in ("others", "loadtest", "steal")}
    return (
        f"{document['repeats']} repeats; others took at most {worst['others']:.1%} of the CPU in a "
        f"run shown here (limit {document['max_others']:.0%}; {len(document['discarded'])} noisier "
        f"runs were repeated), the load generator at most {worst['loadtest']:.1%}, the hypervisor "
        f"{worst['steal']:.1%}."
    )


def number(value: float | None, digits: int | None = None) -> str:
    """Three digits or so, unless told otherwise."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if value >= 100 else 1
    return f"{value:.{digits}f}"


def ratio(ours: float | None, theirs: float | None) -> str:
    """Two digits; a dash where there is nothing to divide."""
    return "-" if ours is None or not theirs else f"{ours / theirs:.2f}"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, num_text_columns: int) -> str:
    """A Markdown table; all columns but the first few are aligned to the right."""
    rules = ["---"] * num_text_columns + ["---:"] * (len(heads) - num_text_columns)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, rules, *rows))
