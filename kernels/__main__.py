"""`python -m kernels`: shows which implementation of each op runs on this machine, and why.

Each op is asked with a typical call: its first benchmark, in bf16, on the GPU if there is one. Then
follow the times of products with a GGUF file's weights, by which `--quantization auto` decides.
"""

import argparse
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import torch

import kernels
from kernels import cache_folder, isa, machine, native
from kernels.measured.product_times import MARGIN, ROWS, prefers_plain
from kernels.measured.self_benchmark import COMMON_TYPES, product_times
from kernels.refusal import refusal
from kernels.registry import Op

IN_RESERVE = "in reserve"


def main(arguments: list[str] | None = None) -> int:
    """Print what the machine offers and a line per op; exit with 2 if `--cpu-isa` is impossible."""
    parser = argparse.ArgumentParser(prog="python -m kernels", description=__doc__)
    cache_folder.add_argument(parser)
    isa.add_argument(parser)
    options = parser.parse_args(arguments)
    cache_folder.use_cache_folder(options.kernels_dir)
    try:
        isa.choose(options.cpu_isa)
    except ValueError as problem:
        sys.stderr.write(f"cpu_isa {problem}; use auto\n")
        return 2
    for heading, fact in machine.facts().items():
        sys.stdout.write(f"{heading:<8}{fact}\n")
    _write_table([("op", "runs", "others"), *(_row(op) for op in kernels.OPS)])
    if native.missing() is None:
        _write_table([("weights", "auto keeps", *_TIMES), *_products()])
    return 0


_TIMES = (*(f"{rows} rows" for rows in ROWS), "mean", f"time packed / plain, at most {MARGIN:g}")


def _products() -> Iterator[tuple[str, ...]]:
    """Yield the rows for models in bf16 whose weights are all of one type."""
    for one, times in product_times(COMMON_TYPES, torch.bfloat16).items():
        kept = "plain" if prefers_plain(times.mean_ratio) else "packed"
        ratios = (f"{ratio:.2f}" for ratio in (*times.ratios, times.mean_ratio))
        since = datetime.fromtimestamp(times.measured_at).astimezone()
        yield one.name, kept, *ratios, f"measured {since:%Y-%m-%d %H:%M}"


def _write_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sys.stdout.write("\n")
    for row in rows:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        sys.stdout.write(f"{line.rstrip()}\n")


def _row(op: Op[..., Any]) -> tuple[str, str, str]:
    has_gpu = torch.cuda.is_available() and op.cases.BENCHMARKS["cuda"]
    device = torch.device("cuda" if has_gpu else "cpu")
    case = op.cases.BENCHMARKS[device.type][0]
    inputs = op.cases.make_inputs(case, torch.bfloat16, device)
    chosen, _ = op.choice(**inputs)
    others = {
        name: IN_RESERVE if one.supports(**inputs) else refusal(name, inputs.values())
        for name, one in op.implementations().items()
        if name != chosen
    }
    return op.name, chosen, "; ".join(f"{name}: {why}" for name, why in others.items())


if __name__ == "__main__":
    sys.exit(main())
