"""Shows a plan as plain text, for terminals and logs."""

from collections.abc import Mapping
from typing import Any

GIB, MIB = 1 << 30, 1 << 20
MAX_ADVICE = 4
"""The most fitting ways that are listed as flags."""

_Plan = Mapping[str, Any]
"""A plan as `PlanReport.as_json` gives it."""


def plan_table(plan: _Plan) -> str:
    """The load, a line for each way to keep the model, and the flags of the ways that fit."""
    columns = _text_columns(plan) if plan["kind"] == "text" else _image_columns(plan)
    lines = [_title(plan), *_experts(plan), *_adapters(plan), "", *_aligned(columns), ""]
    return "\n".join([*lines, *_advice(plan)])


def _title(plan: _Plan) -> str:
    things = "pictures" if plan["kind"] == "image" else "texts"
    size = "" if plan["context"] is None else f" of {plan['context']} tokens"
    count = plan["concurrency"]
    wanted = f"{count} {things if count > 1 else things[:-1]}{size} at a time"
    if plan["replicas"] > 1:
        wanted = f"each of {plan['replicas']} replicas, {wanted}"
    return f"{plan['model']} on {plan['device']}, {_size(plan['free_bytes'])} free: {wanted}"


def _experts(plan: _Plan) -> list[str]:
    """Lines about the part of a mixture that its tokens use."""
    experts = plan.get("experts")
    if experts is None:
        return []
    texts = plan["concurrency"]
    return [
        f"{_count(experts['parameters'])} parameters, of which each token uses "
        f"{_count(experts['active_parameters'])}: {experts['per_token']} of "
        f"{experts['per_layer']} experts in each layer.",
        f"A step with {texts} text{'s' if texts > 1 else ''} is expected to read "
        f"{experts['per_step']:.1f} of them (fewer if the router prefers some).",
    ]


def _adapters(plan: _Plan) -> list[str]:
    """Lines about the memory of LoRA adapters."""
    found = plan.get("adapters")
    if found is None:
        return []
    places, names = found["max_slots"], found["max_adapters"]
    turns = "" if names == places else f" of {names}"
    lines = [f"LoRA adapters: {places}{turns} can be used in one step."]
    if found["num_read"]:
        copies = f" and {_size(found['copy_bytes'])} as copies" if found["copy_bytes"] else ""
        ranks = f" (rank {', '.join(map(str, found['ranks']))})" if found["ranks"] else ""
        lines.append(
            f"The named adapters, {found['num_read']}{ranks}, take "
            f"{_size(found['place_bytes'])} in use{copies}."
        )
    if found["rank_bytes"] is not None:
        lines.append(
            f"Each rank of an adapter for all linear layers takes {_size(found['rank_bytes'])}: "
            f"with rank 16, {places} take {_size(16 * places * found['rank_bytes'])}."
        )
    if found["limit_bytes"] is not None:
        lines.append(f"--lora-memory-gib limits them to {_size(found['limit_bytes'])}.")
    failed = found["failed"].items()
    return [*lines, *(f"{name} cannot be served: {reason}" for name, reason in failed)]


def _text_columns(plan: _Plan) -> list[list[str]]:
    rows = plan["rows"]
    names = ("weights", "read") if plan.get("experts") is not None else ("weights",)
    return [
        ["quantization", *(_format(row) for row in rows)],
        ["kv cache", *(row["kv_cache_dtype"] for row in rows)],
        *_memory_columns(rows, (*names, "kv", *_of_adapters(plan), "step", "process", "total")),
        ["fits", *("yes" if row["fits"] else "no" for row in rows)],
        ["most tokens", *(f"{row['max_tokens']:,}" for row in rows)],
        ["decode", *(_speed(row["decode_tokens_per_s"]) for row in rows)],
        ["prefill", *(_speed(row["prefill_tokens_per_s"]) for row in rows)],
    ]


def _image_columns(plan: _Plan) -> list[list[str]]:
    rows = plan["rows"]
    return [
        ["quantization", *(_format(row) for row in rows)],
        *_memory_columns(rows, ("weights", *_of_adapters(plan), "step", "process", "total")),
        ["fits", *("yes" if row["fits"] else "no" for row in rows)],
    ]


def _of_adapters(plan: _Plan) -> tuple[str, ...]:
    return () if plan.get("adapters") is None else ("adapters",)


def _memory_columns(rows: list[_Plan], names: tuple[str, ...]) -> list[list[str]]:
    keys = {name: f"{name.removesuffix('s')}_bytes" for name in names} | {
        "process": "process_bytes"
    }
    return [[name, *(_size(row[keys[name]]) for row in rows)] for name in names]


def _format(row: _Plan) -> str:
    return f"{row['quantization']}{' (stored)' if row['is_stored'] else ''}"


def _speed(tokens_per_s: float | None) -> str:
    return "-" if tokens_per_s is None else f"{tokens_per_s:,.0f}/s"


def _count(number: int) -> str:
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _size(num_bytes: int) -> str:
    if num_bytes >= GIB:
        return f"{num_bytes / GIB:.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB"


def _aligned(columns: list[list[str]]) -> list[str]:
    """The rows of a table: text in the first column is aligned left, numbers are aligned right."""
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for cells in zip(*columns, strict=True):
        first, *others = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join([first, *others]).rstrip())
    return lines


def _advice(plan: _Plan) -> list[str]:
    fitting = [row for row in plan["rows"] if row["fits"]]
    if not fitting:
        smallest = min(plan["rows"], key=lambda row: row["total_bytes"])
        lacking = smallest["total_bytes"] - smallest["process_bytes"] - plan["free_bytes"]
        shorter = [row for row in plan["rows"] if row["max_tokens"]]
        if not shorter:
            return [
                f"Nothing fits: at least {_size(max(0, lacking))} more are needed; use a smaller "
                f"model or free memory."
            ]
        roomiest = max(shorter, key=lambda row: row["max_tokens"])
        length = roomiest["max_tokens"] // plan["concurrency"]
        flags = [flag for flag in roomiest["flags"] if not flag.startswith("--kv-cache-memory")]
        return [
            "Nothing fits with texts this long. Shorter texts fit:",
            f"  {' '.join([f'--max-model-len {max(1, length)}', *flags])}",
        ]
    lines = [
        f"  {' '.join(row['flags']) or 'the defaults'}"
        for row in sorted(fitting, key=lambda row: -row["weight_bytes"])
    ]
    return ["Fits with", *list(dict.fromkeys(lines))[:MAX_ADVICE]]
