"""A measured perplexity as tables for people."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.table import Table

MIB = 1 << 20


def quality_table(report: Mapping[str, Any]) -> Group:
    """The measured numbers, then the same by class of token."""
    table = Table(show_header=False)
    for name, value in _rows(report):
        table.add_row(name, value)
    tables = [table, _classes(report)] if report["classes"] else [table]
    return Group(*tables)


def _rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    size = f"{report['passages']} passages of {report['context']} tokens"
    rows = [
        ("model", report["model"]),
        ("scored", f"{report['tokens']} tokens of {size}"),
        ("perplexity", f"{report['perplexity']:.4f} ± {report['perplexity_error']:.4f}"),
    ]
    if report["bits_per_byte"] is not None:
        rows.append(("bits per byte", f"{report['bits_per_byte']:.4f}"))
    if report["against"] is not None:
        divergence = f"{report['kl_divergence']:.6f} ± {report['kl_divergence_error']:.6f} nats"
        rows += [
            ("against", f"{report['against']}, perplexity {report['original_perplexity']:.4f}"),
            ("KL divergence", divergence),
            ("same first choice", f"{report['top1_agreement']:.2%}"),
        ]
    if report["weight_bytes"] is not None:
        rows.append(("weights in memory", f"{report['weight_bytes'] / MIB:.1f} MiB"))
    if report.get("saved_to") is not None:
        rows.append(("saved to", f"{report['saved_to']}, beside the model"))
    rows.append(("speed", f"{report['tokens_per_s']:.0f} tokens/s"))
    return rows


def _classes(report: Mapping[str, Any]) -> Table:
    is_compared = report["against"] is not None
    columns = ["class", "tokens", "perplexity"]
    if is_compared:
        columns += ["original's", "KL divergence", "same first choice"]
    table = Table(*columns)
    for name, one in report["classes"].items():
        cells = [name, str(one["tokens"]), f"{one['perplexity']:.3f}"]
        if is_compared:
            cells += [
                f"{one['original_perplexity']:.3f}",
                f"{one['kl_divergence']:.5f}",
                f"{one['top1_agreement']:.1%}",
            ]
        table.add_row(*cells)
    return table
