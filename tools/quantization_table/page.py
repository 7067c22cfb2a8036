"""Renders docs/quantization.json as the parts of docs/quantization.md between marks."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from loadtest.markdown import table
from tools.quantization_table.formats import (
    ALL_MODELS,
    FORMATS,
    MODELS,
    ORIGINAL,
    RESIDENT,
    Format,
    Model,
)

DOCS = Path(__file__).parents[2] / "docs"
DATA = DOCS / "quantization.json"
PAGE = DOCS / "quantization.md"
COMMAND = "python -m tools.quantization_table page"
MIB = 1 << 20
SHOWN_CLASSES = ("Q8_0", "Q4_K_M", "Q3_K_M", "Q2_K", "GPTQ, 4 bits", "GPTQ, 3 bits", "AWQ, 4 bits")
SHARE_OF_4_BITS = 0.4
"""The share of the 16-bit file that weights in 4 bits should take."""
WARNED = ("Q2_K", "GPTQ, 3 bits")
SHOWN_LOSSES = (
    *("Q8_0", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_S", "IQ2_XS"),
    *("GPTQ, 4 bits", "GPTQ, 3 bits", "AWQ, 4 bits"),
    *("`bnb-nf4`, at load", "HQQ, 4 bits", "HQQ, 3 bits", "HQQ, 2 bits"),
)
SHOWN_GROUPS = ("English", "German", "Russian", "Chinese", "Hindi", "Python")
SHOWN_KINDS = ("continuations", "digits")
TASKS = {"arithmetic": "sums", "choices": "choices"}

Rows = Mapping[str, Mapping[str, Any]]


def sections(data: Mapping[str, Any]) -> dict[str, str]:
    """The text of each pair of marks."""
    return {
        "formats": formats(data),
        "classes": classes(data),
        "losses": losses(data),
        "memory": memory(data),
        "warnings": warnings(data),
    }


def formats(data: Mapping[str, Any]) -> str:
    """A table for each model, and notes on all of them."""
    parts = []
    for model, quality, speed in _measured(data):
        heads = (
            *("format", "bits", "file MiB", "weights MiB", "process MiB", "perplexity"),
            *("llama.cpp's", "KL divergence", "same first choice", "tokens/s, 1", "16"),
        )
        rows = [_row(one, quality[one.name], speed.get(one.name)) for one in _known(quality)]
        parts += [f"**{model.title}**", table(heads, rows, num_text_columns=1)]
    return "\n\n".join([*parts, *_notes(data)])


def classes(data: Mapping[str, Any]) -> str:
    """Perplexity as a multiple of the original's, and how often the first choice is the same."""
    parts = []
    for model, quality, _ in _measured(data):
        counts = quality[ORIGINAL.name]["classes"]
        rows = [["tokens", *(str(one["tokens"]) for one in counts.values())]]
        for name in SHOWN_CLASSES:
            if name in quality:
                rows.append([name, *map(_class, quality[name]["classes"].values())])
        parts += [f"**{model.title}**", table(["", *counts], rows, num_text_columns=1)]
    return "\n\n".join(parts)


def losses(data: Mapping[str, Any]) -> str:
    """What formats lose by language, kind of token and task, each with half of its interval."""
    parts = []
    for model in MODELS:
        rows = data.get("losses", {}).get(model.name, {})
        answers = data.get("answers", {}).get(model.name, {})
        names = [name for name in SHOWN_LOSSES if name in rows and name in answers]
        if not names:
            continue
        originals = [f"{one['original']:.2f}" for one in _shown_losses(rows[names[0]])]
        shares = [f"{100 * answers[ORIGINAL.name][task]['first']:.0f} %" for task in TASKS]
        lines = [["*original*", *originals, *shares]]
        for name in names:
            told = [_difference(one) for one in _shown_losses(rows[name])]
            points = [_difference(answers[name][task], in_percent=True) for task in TASKS]
            lines.append([name, *told, *points])
        heads = ("", *SHOWN_GROUPS, *SHOWN_KINDS, *TASKS.values())
        parts += [f"**{model.title}**", table(heads, lines, num_text_columns=1), *_by_bits(rows)]
    return "\n\n".join(parts) or "Not measured yet."


def _by_bits(rows: Rows) -> Iterator[str]:
    """How far apart the groups of texts are, by bits."""
    told: dict[str, list[str]] = {}
    for name in SHOWN_LOSSES:
        method, _, bits = name.partition(", ")
        if bits.endswith(" bits") and name in rows:
            values = sorted(one["difference"] for one in rows[name]["groups"].values())
            told.setdefault(method, []).append(f"{values[0]:.2f} to {values[-1]:.2f} in {bits}")
    if told:
        lines = [f"{method} adds {', '.join(ranges)}" for method, ranges in told.items()]
        yield f"Depending on the language, {'; '.join(lines)}."


def _shown_losses(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    groups = [row["groups"][name] for name in SHOWN_GROUPS]
    return groups + [row["kinds"][name] for name in SHOWN_KINDS]


def _difference(row: Mapping[str, Any], *, in_percent: bool = False) -> str:
    scale, digits = (100, 0) if in_percent else (1, 2)
    half = scale * (row["high"] - row["low"]) / 2
    return f"{scale * row['difference']:+.{digits}f} ±{half:.{digits}f}"


def memory(data: Mapping[str, Any]) -> str:
    """The memory of a 4-bit model, compared with the size in 16 bits."""
    rows, overheads, apart, shares, fixed = [], [], [], [], []
    for title, found in _resident(data):
        whole = found[ORIGINAL.name]["file_bytes"]
        for name in RESIDENT:
            if name not in found or "worker_bytes" not in found[name]:
                continue
            row = found[name]
            if name.startswith("Q4"):
                shares.append(row["weight_bytes"] / whole)
                fixed.append(row["worker_bytes"] - SHARE_OF_4_BITS * whole)
            overheads.append(row["worker_bytes"] - row["weight_bytes"])
            apart.append(abs(row["worker_bytes"] / row["planned_bytes"] - 1))
            rows.append(
                [
                    f"{title}, {name}",
                    *(_mib(row[key]) for key in ("file_bytes", "weight_bytes")),
                    f"{row['weight_bytes'] / whole:.2f}",
                    *(_mib(row[key]) for key in ("worker_bytes", "planned_bytes")),
                    _mib(overheads[-1]),
                ]
            )
    if not rows:
        return "Not measured yet."
    heads = (
        *("", "file MiB", "weights MiB", "of BF16's file"),
        *("process MiB", "planned MiB", "without weights MiB"),
    )
    of_4_bits = ""
    if shares:
        of_4_bits = (
            f"In 4 bits a process takes at most {SHARE_OF_4_BITS} times BF16's file plus "
            f"{max(fixed) / MIB:.0f} MiB; its weights take {min(shares):.2f} to "
            f"{max(shares):.2f} times that file. "
        )
    return "\n\n".join(
        [
            table(heads, rows, num_text_columns=1),
            f"{of_4_bits}Everything but the weights takes {min(overheads) / MIB:.0f} to "
            f"{max(overheads) / MIB:.0f} MiB here, 102 of them for keys and values. `tandem plan` "
            f"predicted the whole process to within {100 * max(apart):.0f} %.",
        ]
    )


def warnings(data: Mapping[str, Any]) -> str:
    """The warnings in the servers' logs."""
    lines = []
    for model, _, speed in _measured(data):
        for name in WARNED:
            for event in speed.get(name, {}).get("warnings", ()):
                told = {key: value for key, value in event.items() if key not in _NOT_SHOWN}
                lines += [f"{model.title}, {name}:", f"```json\n{json.dumps(told)}\n```"]
    return "\n\n".join(lines) or "Not measured yet."


_NOT_SHOWN = ("timestamp", "model", "process", "pid")


def _measured(data: Mapping[str, Any]) -> Iterator[tuple[Model, Rows, Rows]]:
    """Each model with the quality and the speed of its formats, as far as measured."""
    for model in MODELS:
        quality = data.get("quality", {}).get("models", {}).get(model.name)
        if quality:
            yield model, quality, data.get("speed", {}).get("models", {}).get(model.name, {})


def _resident(data: Mapping[str, Any]) -> Iterator[tuple[str, Rows]]:
    """The memory of each model's formats, with the model's title."""
    for model in ALL_MODELS:
        found: dict[str, dict[str, Any]] = {}
        for step in ("quality", "speed"):
            for name, row in data.get(step, {}).get("models", {}).get(model.name, {}).items():
                found.setdefault(name, {}).update(row)
        for name, row in data.get("memory", {}).get(model.name, {}).items():
            found.setdefault(name, {}).update(row)
        if ORIGINAL.name in found:
            yield model.title, found


def _known(quality: Rows) -> list[Format]:
    return [one for one in FORMATS if "perplexity" in quality.get(one.name, {})]


def _row(one: Format, quality: Mapping[str, Any], speed: Mapping[str, Any] | None) -> list[str]:
    bits, theirs = quality["stored_bits"], quality.get("llama_perplexity")
    return [
        _title(one.name, quality["types"]),
        "-" if bits is None else f"{bits:.1f}",
        _mib(quality["file_bytes"]),
        _mib(quality["weight_bytes"]),
        _mib(speed["worker_bytes"]) if speed else "-",
        _perplexity(quality["perplexity"]),
        "-" if theirs is None else _perplexity(theirs),
        f"{quality['kl_divergence']:.4f}",
        f"{100 * quality['top1_agreement']:.1f} %",
        *(_speed(speed, clients) for clients in ("1", "16")),
    ]


def _title(name: str, types: Mapping[str, int]) -> str:
    """The format's name, with the types of its matrices if they differ."""
    if len(types) < 2:
        return name
    return f"{name} ({', '.join(f'{count} {kind}' for kind, count in types.items())})"


def _speed(speed: Mapping[str, Any] | None, clients: str) -> str:
    if not speed or not speed["runs"][clients]:
        return "-"
    return f"{median(_rates(speed, clients)):.0f}"


def _rates(speed: Mapping[str, Any], clients: str) -> list[float]:
    return [run["tokens_per_s"] for run in speed["runs"][clients]]


def _class(report: Mapping[str, Any]) -> str:
    ratio = report["perplexity"] / report["original_perplexity"]
    return f"{ratio:.2f} times, {100 * report['top1_agreement']:.0f} %"


def _perplexity(value: float) -> str:
    return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"


def _mib(num_bytes: int | None) -> str:
    return "-" if num_bytes is None else f"{num_bytes / MIB:,.0f}"


def _notes(data: Mapping[str, Any]) -> Iterator[str]:
    gaps: dict[bool, list[float]] = {True: [], False: []}
    for _, quality, _ in _measured(data):
        for name, row in quality.items():
            if "llama_perplexity" in row and "perplexity" in row:
                apart = abs(row["perplexity"] / row["llama_perplexity"] - 1)
                gaps[name == ORIGINAL.name].append(apart)
    if gaps[True] and gaps[False]:
        yield (
            f"llama.cpp's perplexities differ by at most {_percent(gaps[False])}, for BF16 by "
            f"{_percent(gaps[True])}: with packed weights llama.cpp rounds activations to 8 bits."
        )
    if "speed" in data:
        yield _conditions(data["speed"])


def _conditions(speed: Mapping[str, Any]) -> str:
    rows = [row for rows in speed["models"].values() for row in rows.values()]
    runs = [runs for row in rows for runs in row["runs"].values()]
    rounds = sorted({len(one) for one in runs})
    others = max((run["others"] for one in runs for run in one), default=0.0)
    spreads = [_spread([run["tokens_per_s"] for run in one]) for one in runs if one]
    machine = speed["machine"]
    changes = " with changes" if speed["uncommitted_changes"] else ""
    told = (
        f"Tokens/s are medians of {_among(rounds)} rounds"
        if rounds[-1:] > [1]
        else "Tokens/s are those of one round"
    )
    told += (
        f" in which all formats of a model took turns, {speed['started_at'][:10]}, commit "
        f"{(speed['commit'] or '')[:12]}{changes}, {machine['cores']} cores of {machine['cpu']} "
        f"({machine['cpu_flags']}). "
    )
    if rounds[-1:] > [1]:
        told += (
            f"Half of the cells had rounds within {_percent([median(spreads)])} of their median, "
            f"all within {_percent(spreads)}. "
        )
    return f"{told}Other programs took at most {_percent([others])} of the processor."


def _spread(values: Sequence[float]) -> float:
    middle = median(values)
    return max(abs(value / middle - 1) for value in values)


def _percent(shares: Iterable[float]) -> str:
    """The largest share, in percent."""
    return f"{100 * max(shares):.2g} %"


def _among(numbers: Sequence[int]) -> str:
    return " or ".join(map(str, numbers))
