"""The page about the models of transformers, docs/models.md."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loadtest.markdown import table

DOCS = Path(__file__).parents[2] / "docs"
PAGE, DATA = DOCS / "models.md", DOCS / "models.json"
TOLERANCE = 1e-3
Row = Mapping[str, Any]


def page_of(rows: Mapping[str, Row], version: str) -> str:
    """The page with the counts and a table by name for each outcome."""
    of_state: dict[str, dict[str, Row]] = {}
    for name, row in rows.items():
        of_state.setdefault(row["state"], {})[name] = row
    served = of_state.get("family", {}) | of_state.get("fallback", {})
    refused = of_state.get("refused", {}).values()
    num_others = sum(any(one in r["reason"] for one in _NO_TEXTS) for r in refused)
    share = len(served) / max(1, len(rows) - num_others)
    counts: list[tuple[str, int | str]] = [
        ("all architectures", len(rows)),
        ("encoders, encoder-decoders and others that do not continue texts", num_others),
        ("share of the rest that is served", f"{share:.1%}"),
        ("served by a family of Tandem", len(of_state.get("family", {}))),
        ("served by transformers' code on Tandem's cache", len(of_state.get("fallback", {}))),
        (
            "served, equal to transformers, always the same bits",
            sum(map(_is_alike, served.values())),
        ),
        ("refused", len(refused)),
        ("failed without a clear error", len(of_state.get("failed", {}))),
        ("not tried", len(of_state.get("not made", {}))),
    ]
    parts = [
        _HEAD.format(version=version),
        table(["", "number"], [[name, str(count)] for name, count in counts], num_text_columns=1),
    ]
    for title, state, text in _SECTIONS:
        found = of_state.get(state, {})
        if found:
            cells = _served if state in ("family", "fallback") else _unserved
            heads = _SERVED_HEADS if state in ("family", "fallback") else _UNSERVED_HEADS
            lines = [cells(name, row) for name, row in sorted(found.items())]
            parts += [f"## {title}", text, table(heads, lines, num_text_columns=len(heads))]
    return "\n\n".join(parts) + "\n"


def summary(row: Row) -> str:
    """A row in one line."""
    if "difference" not in row:
        return f"{row['state']}: {row['reason']}"
    beside, hit = row["same_in_company"], row["same_after_hit"]
    bits = f"same bits beside other texts: {beside}, after a prefix hit: {hit}"
    return f"{row['state']} ({row['by']}), difference {row['difference']:.1e}, {bits}"


def _is_alike(row: Row) -> bool:
    return bool(row["difference"] <= TOLERANCE and row["same_in_company"] and row["same_after_hit"])


def _served(name: str, row: Row) -> list[str]:
    takes = "text" if row["kind"] == "text" or not row["pictures"] else "text and images"
    by = "" if row["by"] == name else row["by"]
    bits = [_yes(row["same_in_company"]), _yes(row["same_after_hit"])]
    return [name, takes, by, f"{row['difference']:.0e}", *bits]


def _unserved(name: str, row: Row) -> list[str]:
    return [name, row["reason"].replace("|", "\\|").replace("<", "&lt;")]


def _yes(value: bool) -> str:
    return "yes" if value else "**no**"


_NO_TEXTS = ("encoder", "in both directions", "does not continue texts")
"""Parts of the reasons for refusing models that do not continue texts."""
_SERVED_HEADS = (
    *("architecture", "input", "computed as", "difference"),
    *("same bits beside other texts", "same bits after a prefix hit"),
)
_UNSERVED_HEADS = ("architecture", "reason")
_SECTIONS = (
    (
        "Served by a family",
        "family",
        "Tandem's own layers compute these models.",
    ),
    (
        "Served by transformers' code",
        "fallback",
        "Transformers' layers compute these models with Tandem's matrix products, attention and "
        "cache ([how](decisions/023-models-without-a-family.md)). They are slower than families, "
        "above all those with recurrent states or with attention that only transformers' code can "
        "compute: these compute one token at a time.",
    ),
    ("Refused", "refused", "Tandem refuses to load these models, with the error shown."),
    ("Failed", "failed", "These models fail without a clear error, which is a defect."),
    ("Not tried", "not made", "The command cannot make a tiny model of these architectures."),
)
_HEAD = """# Models

<!-- written by python -m tools.architectures -->

This page lists every causal and every image-and-text architecture of transformers {version}.
For each one, `python -m tools.architectures` makes a tiny checkpoint with random weights, serves it
on a CPU in fp32 and compares log-probabilities of a random text with those of transformers. The
table shows the largest difference among the 20 likeliest tokens of every position. The text is then
computed twice more: with its prompt in the prefix cache, and beside other texts with so few
KV blocks that texts are preempted. The result must have the same bits each time. A model that takes
images in transformers but only text here is served without image input. The weights are random, so
this page says nothing about the quality of a published checkpoint."""
