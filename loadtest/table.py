"""The tables for the terminal."""

from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from loadtest.points import unevenness

_LATENCIES = (
    ("time to first token", "ttft_ms"),
    ("inter-token latency", "itl_ms"),
    ("time per output token", "tpot_ms"),
    ("end to end", "e2e_ms"),
    ("sent after its time", "send_lateness_ms"),
)


def run_table(run: dict[str, Any], title: str) -> Group:
    """Everything about one run: counts, rates, latencies, machine load, and warnings."""
    latencies = [_latencies(run["summary"])] if run["summary"]["num_ok"] else []
    notes = [Text(warning, "yellow") for warning in warnings(run)]
    return Group(_rates(run, title), *latencies, *notes)


def _rates(run: dict[str, Any], title: str) -> Table:
    summary, cpu = run["summary"], run["cpu"]
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="cyan")
    table.add_column(justify="right")
    sent = f"{summary['num_ok']} ok, {summary['num_failed']} failed"
    table.add_row("requests", f"{sent} of {summary['num_planned']}")
    table.add_row("wall time", f"{summary['wall_s']:.2f} s")
    table.add_row("most in flight", str(summary["max_in_flight"]))
    table.add_row("output tokens/s", f"{summary['output_tok_s']:.1f}")
    table.add_row("requests/s", f"{summary['request_s']:.2f}")
    cached = f" ({summary['cached_tokens']} cached)" if summary["cached_tokens"] else ""
    table.add_row("prompt tokens", f"{summary['prompt_tokens']}{cached}")
    table.add_row("output tokens", str(summary["output_tokens"]))
    if slo := summary.get("slo"):
        limits = ", ".join(f"{name} ≤ {ms:g} ms" for name, ms in slo["limits_ms"].items())
        met = f"{slo['goodput_request_s']:.2f} req/s, {slo['ratio']:.1%} of requests"
        table.add_row(f"goodput ({limits})", met)
    if summary["itl_ms"]:
        ratio = unevenness(run, summary)
        table.add_row("p99 / p50 of the gaps", "-" if ratio is None else f"{ratio:.2f}")
    for limit, rate in summary["itl_goodput_request_s"].items():
        table.add_row(f"goodput (itl ≤ {limit} ms)", f"{rate:.2f} req/s")
    if memory := run["memory"]:
        table.add_row("memory (PSS) after / peak", _memory(memory))
    shares = [f"{cpu['watched']:.1%} server"] if memory else []
    shares += [f"{cpu['loadtest']:.1%} this program", f"{cpu['others']:.1%} others"]
    table.add_row("CPU of the machine", ", ".join(shares))
    return table


def _memory(memory: dict[str, float]) -> str:
    return f"{memory['pss_mib']:.0f} / {memory['peak_pss_mib']:.0f} MiB"


def _latencies(summary: dict[str, Any]) -> Table:
    table = Table(title="latency, ms", title_justify="left")
    table.add_column("")
    columns = ("mean", "p50", "p90", "p99", "max")
    for name in columns:
        table.add_column(name, justify="right")
    for label, key in _LATENCIES:
        if values := summary.get(key):
            table.add_row(label, *(f"{values[name]:.1f}" for name in columns))
    return table


def warnings(run: dict[str, Any]) -> list[str]:
    """Warnings about anything that makes the numbers doubtful."""
    summary = run["summary"]
    found = []
    if run["partial"]:
        not_sent = summary["num_planned"] - summary["num_sent"]
        found.append(f"interrupted: partial results, {not_sent} requests were never sent")
    for error, count in summary["errors"].items():
        found.append(f"{count} x {error}")
    if summary["num_short"]:
        found.append(f"{summary['num_short']} answers ended before max_tokens")
    if summary["num_without_usage"]:
        found.append(
            f"{summary['num_without_usage']} answers had no usage: their tokens are counted as "
            "chunks, which is too few when a chunk holds several"
        )
    if summary["num_ok"] and run["cpu"]["loadtest"] > 0.05:
        found.append(
            f"the load generator itself used {run['cpu']['loadtest']:.1%} of the machine's CPU"
        )
    return found
